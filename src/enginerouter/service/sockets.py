"""The listening socket that a service manager opened for us (sd_listen_fds(3)): nobody is refused during an upgrade."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from enginerouter.errors import ConfigError, Problem

FIRST_FD = 3


def given_socket(environ: Mapping[str, str] = os.environ) -> socket.socket | None:
    """The socket that was handed over, or None. Raises ConfigError if what was handed over cannot be listened on."""
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal() or int(count) == 0:
        return None
    if int(count) > 1:
        raise _refused(f"{count} sockets; the router listens on one: leave one ListenStream= in its socket unit")
    try:
        sock = socket.socket(fileno=FIRST_FD)
    except OSError as error:
        raise _refused(f"something that is no socket ({error.strerror})") from None
    is_listening = sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if not is_listening:
        sock.detach()
        raise _refused("a socket that does not listen: ListenStream= and Accept=no are needed in its socket unit")
    # Engines must not inherit it.
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock


def _refused(what: str) -> ConfigError:
    return ConfigError([Problem(f"the service manager handed over {what}", path="LISTEN_FDS")])
