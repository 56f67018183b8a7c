"""Where available memory is read: what a source promises, and the sources of the host's own memory.

A source never creates a GPU context and never blocks the event loop. `available` is plain and cheap; what has to be
asked for (a driver, a command) is asked in `refresh`, and a reading older than `STALE_AFTER_S` is none at all.
Cards: `nvidia` and `amdgpu`. Which source a router uses: `pick`.
"""

from __future__ import annotations

import mmap
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

MEMINFO = Path("/proc/meminfo")
STALE_AFTER_S = 2.0
_CPU_LIST = re.compile(rb"^ +count: +(\d+)$", re.MULTILINE)

# Bytes that each process has on the devices; None = it is there, and nothing says with how much.
Processes = Mapping[int, int | None]


@dataclass(frozen=True, slots=True)
class Device:
    """One card. `is_unified`: it has no memory of its own, the host's is its pool. `problem`: why nothing was read."""

    name: str
    total_bytes: int | None = None
    available_bytes: int | None = None
    is_unified: bool = False
    problem: str = ""

    @property
    def is_readable(self) -> bool:
        return not self.is_unified and self.available_bytes is not None


class MemorySource(Protocol):
    """`name` is what `check` and `/status` show, `problem` why it cannot be read now.

    `counts_host_pages`: the host's pages are part of this pool, so what a process tree has in them counts as held.
    """

    @property
    def name(self) -> str: ...

    @property
    def problem(self) -> str: ...

    @property
    def counts_host_pages(self) -> bool: ...

    async def start(self) -> None:
        """Find what there is to read. Raises ConfigError if it is not what the configuration asks for."""

    async def refresh(self) -> None:
        """Make the other methods say what is so now, not earlier. Ends within `STALE_AFTER_S`, read or not."""

    def available(self) -> int | None:
        """Bytes that a new engine could take now; None if that cannot be read."""

    def devices(self) -> Sequence[Device]:
        """The cards that were found, those that are not read too."""

    def processes(self) -> Processes | None:
        """What holds memory on the cards, as they say; None where the source has no such list."""

    async def close(self) -> None: ...


class ChosenSource(MemorySource, Protocol):
    """The one that a router reads. `why` it is that one; `warnings` are what somebody should look at."""

    @property
    def why(self) -> str: ...

    @property
    def warnings(self) -> Sequence[str]: ...


class HostSource:
    """What the sources of the host's memory have in common: they can be read at any moment, and know no cards."""

    name = "host"
    counts_host_pages = True

    @property
    def problem(self) -> str:
        return ""

    def available(self) -> int | None:
        return None

    async def start(self) -> None:
        pass

    async def refresh(self) -> None:
        pass

    def devices(self) -> Sequence[Device]:
        return ()

    def processes(self) -> Processes | None:
        return None

    async def close(self) -> None:
        pass


class Meminfo(HostSource):
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


class Psutil(HostSource):
    """psutil's idea of available memory: macOS, Windows and the BSDs."""

    name = "psutil"

    def available(self) -> int | None:
        return int(psutil.virtual_memory().available)


class NoSource(HostSource):
    """`memory_source: none`: nothing is read, settle waits are off."""

    name = "none"

    def available(self) -> int | None:
        return None


def host_source() -> Meminfo | Psutil:
    """The kernel's own figure where there is one."""
    return Meminfo() if sys.platform == "linux" and MEMINFO.exists() else Psutil()
