"""Who listens where: free ports, and the holder of a taken one. No HTTP is needed to see a holder.

Functions here block: call them in a thread. Linux reads /proc/net/tcp and the descriptors of processes; elsewhere
psutil does, as far as it may. A holder that cannot be named (another user's process, a container's proxy) is
known by a connection that is accepted.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from enginerouter.engines.proctree import IS_LINUX, command_line
from enginerouter.errors import printable

_PROC = Path("/proc")
_LISTEN = "0A"
_ESTABLISHED = "01"
_WILDCARDS = {"0.0.0.0", "::"}


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket. `inode` names it on Linux, `pid` where psutil told."""

    address: str
    port: int
    inode: str = ""
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class Holder:
    """Who would get a connection. No pids: somebody does, but it cannot be told who."""

    port: int
    pids: frozenset[int]

    def __str__(self) -> str:
        if not self.pids:
            return "an unknown process"
        return ", ".join(
            f"process {pid} ({printable(command_line(pid)) or 'command unknown'})" for pid in sorted(self.pids)
        )


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def holder_of(host: str, port: int) -> Holder | None:
    """Who holds host:port, or None if it is free."""
    addresses = resolve(host, port)
    local = [address for address in addresses if is_local(address)]
    found = receivers(listeners(port), local)
    if found:
        return Holder(port, pids_of(found))
    if any(accepts(address, port) for address in addresses):
        return Holder(port, frozenset())
    return None


@dataclass(frozen=True, slots=True)
class Listening:
    """Who answers at a port, seen from a set of processes. `unknown`: sockets whose owner cannot be told."""

    ours: frozenset[int]
    strangers: frozenset[int]
    unknown: int

    @property
    def is_all_ours(self) -> bool | None:
        """None where it cannot be told."""
        if self.strangers:
            return False
        return True if self.ours and not self.unknown else None


def who_listens(host: str, port: int, among: Collection[int]) -> Listening:
    """Is it these processes that answer at host:port, and nobody else?"""
    local = [address for address in resolve(host, port) if is_local(address)]
    ours: set[int] = set()
    strangers: set[int] = set()
    unknown = 0
    for listener in receivers(listeners(port), local):
        # Cheap and usual: found among our own, without a look at every process there is.
        if own := pids_of([listener], among):
            ours |= own
        elif others := pids_of([listener]):
            strangers |= others
        else:
            unknown += 1
    return Listening(frozenset(ours), frozenset(strangers), unknown)


def receivers(found: Collection[Listener], addresses: Iterable[str]) -> list[Listener]:
    """The sockets that a connection to one of these addresses reaches: the most exact one of each wins."""
    chosen: list[Listener] = []
    for address in addresses:
        is_v4 = ":" not in address
        ladder = [address, "0.0.0.0", "::"] if is_v4 else [address, "::"]
        for step in ladder:
            matches = [listener for listener in found if listener.address == step]
            if matches:
                chosen += [listener for listener in matches if listener not in chosen]
                break
    return chosen


def resolve(host: str, port: int) -> list[str]:
    """IP addresses of the host, the order of the system; a wildcard is asked by loopback."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


def is_local(address: str) -> bool:
    """Is it an address of this machine? Only one of ours can be bound."""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(address).is_loopback:
            return True
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def accepts(address: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(0.5)
            probe.connect((address, port))
            # Linux may connect a socket of the ephemeral range to itself when nobody listens.
            return bool(probe.getsockname()[:2] != probe.getpeername()[:2])
    except OSError:
        return False


def listeners(port: int) -> list[Listener]:
    if IS_LINUX:
        return [
            listener
            for name in ("tcp", "tcp6")
            for listener in parse_table(_read(_PROC / "net" / name))
            if listener.port == port
        ]
    with contextlib.suppress(psutil.Error, OSError):
        return [
            Listener(connection.laddr.ip, port, pid=connection.pid)
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
        ]
    return []  # macOS tells only root: a connection has to do


def is_connected(port: int) -> bool:
    """Whether somebody is connected to this port of the machine; False also where that cannot be told."""
    if IS_LINUX:
        tables = [_read(_PROC / "net" / name) for name in ("tcp", "tcp6")]
        return any(socket.port == port for table in tables for socket in parse_table(table, _ESTABLISHED))
    with contextlib.suppress(psutil.Error, OSError):
        return any(
            connection.status == psutil.CONN_ESTABLISHED and connection.laddr and connection.laddr.port == port
            for connection in psutil.net_connections("tcp")
        )
    return False


def parse_table(text: str, state: str = _LISTEN) -> list[Listener]:
    """The sockets of /proc/net/tcp or tcp6 that are in this state, by default the listening ones."""
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == state:
            raw, _, port = fields[1].partition(":")
            found.append(Listener(_address(raw), int(port, 16), inode=fields[9]))
    return found


def _address(raw: str) -> str:
    """The kernel prints addresses as 32-bit words in the machine's byte order."""
    words = bytes.fromhex(raw)
    if sys.byteorder == "little":
        words = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
    address = ipaddress.ip_address(words)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def pids_of(found: Iterable[Listener], among: Iterable[int] | None = None) -> frozenset[int]:
    """The processes that have one of these sockets open, as far as we may look."""
    wanted = {f"socket:[{listener.inode}]" for listener in found if listener.inode}
    named = {listener.pid for listener in found if listener.pid is not None}
    if not wanted:
        return frozenset(named if among is None else named & set(among))
    if among is None:
        among = psutil.pids()
    return frozenset(pid for pid in among if _has_open(pid, wanted)) | named


def _has_open(pid: int, wanted: set[str]) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                if os.readlink(f"{folder}/{name}") in wanted:
                    return True
    except OSError:
        return False
    return False


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
