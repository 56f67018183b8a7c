"""Tell systemd how the service is, by datagrams to `$NOTIFY_SOCKET` (sd_notify(3)); without one, tell nobody.

The service manager keeps time: `READY` when the port answers, `RELOADING` and `READY` around a reload, `STOPPING` at
the end, and `WATCHDOG` as long as the coordinator turns. A process that is there but stuck is killed and started anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)


class Notifier:
    """The messages. `address`: a path, or `@` and a name in Linux's abstract space; empty = there is no manager."""

    def __init__(self, address: str, watchdog_s: float | None = None) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = watchdog_s

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Notifier:
        """As systemd told this process: a watchdog that is meant for another one (`WATCHDOG_PID`) does not count."""
        address = environ.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
            return cls("")
        is_ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        usec = environ.get("WATCHDOG_USEC", "")
        return cls(address, int(usec) / 1e6 if is_ours and usec.isdecimal() and int(usec) > 0 else None)

    def ready(self, status: str) -> None:
        """The port answers. `status` is one line for `systemctl status`."""
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        # Type=notify-reload tells this reload from an older one by the time.
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}\nSTATUS=reloading the configuration")

    def stopping(self, within_s: float) -> None:
        """The end has begun and may take this long: the unit's own stop time may be of an older configuration."""
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={round(within_s * 1e6)}\nSTATUS=stopping")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            # Not blocking: a manager that takes no message must not stop the loop.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
                sock.sendto(message.encode(), self._address)
        except OSError as error:
            log.warning("the service manager was not told %r: %s", message.partition("\n")[0], error)


async def feed_watchdog(notifier: Notifier, seconds_since_turn: Callable[[], float], stuck_after_s: float) -> None:
    """Say that the router lives, twice in each of the watchdog's periods, while its coordinator turns; for ever.

    `seconds_since_turn`: how long ago the coordinator last turned. Returns at once where nobody watches.
    """
    if notifier.watchdog_s is None:
        return
    was_stuck = False
    while True:
        silent_s = seconds_since_turn()
        is_stuck = silent_s > stuck_after_s
        if not is_stuck:
            notifier.alive()
        elif not was_stuck:
            log.error(
                "the coordinator has not turned for %.0f s: the watchdog is not fed, and restarts the service", silent_s
            )
        was_stuck = is_stuck
        await asyncio.sleep(notifier.watchdog_s / 2)
