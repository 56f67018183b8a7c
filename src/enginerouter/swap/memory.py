"""Where available memory is read. A source never creates a GPU context and never blocks the event loop."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Protocol

import psutil

MEMINFO = Path("/proc/meminfo")


class MemorySource(Protocol):
    """`name` is what `check` and `/status` show."""

    @property
    def name(self) -> str: ...

    def available(self) -> int | None:
        """Bytes that a new engine could take now; None if that cannot be read."""


class Meminfo:
    """MemAvailable of the Linux kernel. Reading /proc is memory to memory: some 30 µs, no disk."""

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
                return int(line.split()[1]) * 1024
        return None


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
