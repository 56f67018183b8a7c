"""Which processes belong to an engine, and how to signal exactly those.

A process is named by pid *and* start time, for a pid alone is soon somebody else's. A **tree** is what one launch
made: everything with its marker in the environment, in a session led by a member, or descended from a member –
so that neither `setsid`, a double fork nor a rewritten title hides one. Functions here block (they read /proc):
call them in a thread. Linux reads /proc; elsewhere psutil answers, with less.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

log = logging.getLogger(__name__)

MARKER = "ENGINEROUTER_LAUNCH"
IS_LINUX = sys.platform.startswith("linux")
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
TERM = signal.SIGTERM
_PROC = Path("/proc")


class ProcessKey(NamedTuple):
    """`started`: clock ticks since boot on Linux, milliseconds since 1970 elsewhere."""

    pid: int
    started: int


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    key: ProcessKey
    parent: int
    session: int
    # One letter as in /proc/PID/stat: R S D T (stopped) t (traced) Z (zombie) X (dead).
    state: str
    marker: str

    @property
    def is_alive(self) -> bool:
        return self.state not in "ZX"


Snapshot = dict[int, ProcessInfo]


def boot_id() -> str:
    """Tells one boot from another: start times and pids mean nothing across it."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(int(psutil.boot_time()))


def read_process(pid: int, *, with_marker: bool = True) -> ProcessInfo | None:
    """None if there is no such process."""
    return _read_linux(pid, with_marker) if IS_LINUX else _read_psutil(pid, with_marker)


def snapshot() -> Snapshot:
    """All processes that can be seen now."""
    found = (read_process(pid) for pid in psutil.pids())
    return {info.key.pid: info for info in found if info is not None}


def _read_linux(pid: int, with_marker: bool) -> ProcessInfo | None:
    try:
        stat = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    # The name, in parentheses, may hold spaces and parentheses itself.
    fields = stat[stat.rindex(b")") + 2 :].split()
    marker = ""
    if with_marker:
        with contextlib.suppress(OSError):  # another user's, or gone
            marker = marker_in((_PROC / str(pid) / "environ").read_bytes())
    state = fields[0].decode()
    if state == "Z" and int(fields[17]) > 1:
        state = "S"  # only its first thread has ended; the others still hold everything
    return ProcessInfo(ProcessKey(pid, int(fields[19])), int(fields[1]), int(fields[3]), state, marker)


def _read_psutil(pid: int, with_marker: bool) -> ProcessInfo | None:
    letters = {psutil.STATUS_ZOMBIE: "Z", psutil.STATUS_DEAD: "X", psutil.STATUS_STOPPED: "T"}
    try:
        process = psutil.Process(pid)
        key = ProcessKey(pid, int(process.create_time() * 1000))
        state = letters.get(process.status(), "S")
        parent = process.ppid()
    except psutil.Error:
        return None
    marker, session = "", 0
    if with_marker:
        with contextlib.suppress(psutil.Error, OSError):
            marker = process.environ().get(MARKER, "")
    if hasattr(os, "getsid"):
        with contextlib.suppress(OSError):
            session = os.getsid(pid)
    return ProcessInfo(key, parent, session, state, marker)


def marker_in(environ: bytes) -> str:
    wanted = f"{MARKER}=".encode()
    for entry in environ.split(b"\0"):
        if entry.startswith(wanted):
            return entry[len(wanted) :].decode(errors="replace")
    return ""


def is_alive(key: ProcessKey) -> bool:
    """A zombie is dead: it holds nothing."""
    info = read_process(key.pid, with_marker=False)
    return info is not None and info.key == key and info.is_alive


def is_running(pid: int) -> bool:
    """Whether anybody has this pid who is no zombie."""
    info = read_process(pid, with_marker=False)
    return info is not None and info.is_alive


def members(processes: Snapshot, marker: str, known: Collection[ProcessKey]) -> set[ProcessKey]:
    """The tree of one launch: its marker, the sessions its living or unreaped members lead, their descendants.

    `known` are members seen earlier (they may have lost marker and parent since). Zombies are included – an
    unreaped leader vouches for its session – and neither we nor those we descend from ever are.
    """
    ours = {info.key.pid for info in processes.values() if marker and info.marker == marker}
    ours |= {key.pid for key in known if (info := processes.get(key.pid)) is not None and info.key == key}
    untouchable = _own_line(processes)
    ours -= untouchable
    found_more = True
    while found_more:
        more = {
            pid
            for pid, info in processes.items()
            # A session number is only ours while its leader is: else it may have been given away again.
            if pid not in ours and pid not in untouchable and (info.parent in ours or info.session in ours)
        }
        ours |= more
        found_more = bool(more)
    return {processes[pid].key for pid in ours}


def alive(processes: Snapshot, keys: Iterable[ProcessKey]) -> set[ProcessKey]:
    return {key for key in keys if (info := processes.get(key.pid)) and info.key == key and info.is_alive}


def _own_line(processes: Snapshot) -> set[int]:
    """The router and everything it descends from."""
    line = {0, 1}
    pid = os.getpid()
    while pid not in line:
        line.add(pid)
        info = processes.get(pid)
        pid = info.parent if info is not None else 0
    return line


def send(key: ProcessKey, number: int) -> bool:
    """Signal exactly this process, or nobody: never one that got its pid since. False if it is gone."""
    if key.pid in (0, 1, os.getpid()):
        return False
    if not hasattr(signal, "pidfd_send_signal") or not hasattr(os, "pidfd_open"):
        if not is_alive(key):
            return False
        with contextlib.suppress(psutil.Error, OSError):
            psutil.Process(key.pid).send_signal(number)
            return True
        return False
    try:
        handle = os.pidfd_open(key.pid)
    except OSError:
        return False
    try:
        if not is_alive(key):  # read after the handle was taken, so the answer is about the same process
            return False
        signal.pidfd_send_signal(handle, number)
    except OSError as error:
        log.warning("process %d could not be signalled: %s", key.pid, error)
        return False
    else:
        return True
    finally:
        os.close(handle)


def send_to_group(leader: ProcessKey, number: int) -> bool:
    """Signal the process group that our child leads, as a terminal would. Never our own group.

    A group whose leader is unreaped or alive with the same start time cannot be another one.
    """
    info = read_process(leader.pid, with_marker=False)
    if info is None or info.key != leader or not hasattr(os, "killpg"):
        return send(leader, number)
    try:
        group = os.getpgid(leader.pid)
    except OSError:
        return False
    if group != leader.pid or group == os.getpgrp():
        return send(leader, number)
    try:
        os.killpg(group, number)
    except OSError:
        return False
    return True


def kill_all(keys: Iterable[ProcessKey]) -> None:
    for key in keys:
        send(key, KILL)


def held_bytes(keys: Iterable[ProcessKey]) -> int | None:
    """Memory of these processes that their end gives back: see `held_in_rollup`. None if one cannot be read."""
    total = 0
    for key in keys:
        try:
            if IS_LINUX:
                total += held_in_rollup((_PROC / str(key.pid) / "smaps_rollup").read_text())
            else:
                total += int(psutil.Process(key.pid).memory_full_info().uss)
        except (ProcessLookupError, FileNotFoundError, psutil.NoSuchProcess):
            continue
        except (OSError, psutil.Error, AttributeError):
            return None
    return total


def held_in_rollup(text: str) -> int:
    """Bytes of one /proc/PID/smaps_rollup that are not already called available.

    Anonymous and shared memory; locked memory beyond those, as far as it is file pages (a model under mlock).
    Other file pages cost no availability: the kernel drops them when it likes.
    """
    kib = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        number = rest.split()
        if number and number[0].isdigit():
            kib[name] = int(number[0])
    own = kib.get("Pss_Anon", 0) + kib.get("Pss_Shmem", 0)
    locked_file = min(max(0, kib.get("Locked", 0) - own), kib.get("Pss_File", 0))
    return (own + locked_file) * 1024


def stopped_state(leader: ProcessKey, listeners: Collection[int]) -> str | None:
    """Why this process, with the others, cannot be serving; None if it looks alive."""
    info = read_process(leader.pid, with_marker=False)
    if info is None or info.key != leader or not info.is_alive:
        return f"its process {leader.pid} is gone"
    for pid in (leader.pid, *listeners):
        info = read_process(pid, with_marker=False)
        if info is not None and info.state in "Tt":
            return f"its process {pid} is stopped (continue it with: kill -CONT {pid})"
    return None


def environment(key: ProcessKey) -> dict[str, str]:
    """What this process was given at its start; empty if it is gone, or not ours to look at."""
    try:
        found = psutil.Process(key.pid).environ()
    except (psutil.Error, OSError):
        return {}
    return found if is_alive(key) else {}


def command_line(pid: int) -> str:
    """For a message: what runs there, as one line."""
    try:
        if IS_LINUX:
            raw = (_PROC / str(pid) / "cmdline").read_bytes().rstrip(b"\0")
            words = [word.decode(errors="replace") for word in raw.split(b"\0")]
            return " ".join(words).strip() or (_PROC / str(pid) / "comm").read_text().strip()
        return " ".join(psutil.Process(pid).cmdline())
    except (OSError, psutil.Error):
        return ""
