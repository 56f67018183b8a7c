"""Memory of AMD cards, from the files of the amdgpu driver. Reading them is memory to memory and wakes no card.

The exception is `gpu_metrics`: older kernels wake a card for it that is asleep. It is read once, when the cards are
looked for, of a card whose kind the sizes of its memory leave open; `Amdgpu()` is therefore made in a thread.

An APU has a carve-out of the host's memory as "VRAM" and takes the rest through the GTT, which is host memory: its pool
is the host's, unless the carve-out is the larger part (then models live in it, and the host does not see it).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from enginerouter.swap.memory import Device, HostSource, Meminfo, Processes

DRM = Path("/sys/class/drm")
KFD = Path("/sys/class/kfd/kfd/proc")
_CARD = re.compile(r"card\d+")
# Revisions of the metrics table (the byte at 2): 1 is for cards, 2 and 3 are for APUs.
_APU_METRICS = frozenset({2, 3})
_SMALL_CARVE_OUT = 1024**3


class Amdgpu(HostSource):
    """The memory of all AMD cards as one pool. Making one blocks. `root` and `kfd` are for tests."""

    name = "amd"
    counts_host_pages = False

    def __init__(self, root: Path = DRM, kfd: Path = KFD, host: Meminfo | None = None) -> None:
        self._kfd = kfd
        self._host = host or Meminfo()
        paths = sorted(p for p in root.glob("card*") if _CARD.fullmatch(p.name))
        self._cards = [p / "device" for p in paths if (p / "device/mem_info_vram_total").exists()]
        self._unified = {card for card in self._cards if _is_unified(card)}
        # Asked for by name on a machine with APUs only, they are the pool.
        self._reads_unified = len(self._unified) == len(self._cards)

    @property
    def counts_gtt(self) -> bool:
        return self._reads_unified and bool(self._cards)

    def available(self) -> int | None:
        devices = self.devices()
        if self.counts_gtt:
            free = [d.available_bytes for d in devices if d.available_bytes is not None]
        else:
            free = [d.available_bytes for d in devices if d.is_readable and d.available_bytes is not None]
        return sum(free) if free else None

    def devices(self) -> Sequence[Device]:
        return tuple(self._device(card) for card in self._cards)

    def _device(self, card: Path) -> Device:
        name, is_unified = _name(card), card in self._unified
        total, used = _read(card / "mem_info_vram_total"), _read(card / "mem_info_vram_used")
        if total is None or used is None:
            return Device(name, is_unified=is_unified, problem=f"{card}/mem_info_vram_* cannot be read")
        free = max(0, total - used)
        if is_unified:
            free += self._free_gtt(card)
        return Device(name, total, free, is_unified)

    def _free_gtt(self, card: Path) -> int:
        """What the GTT may still take: it is host memory, so never more than the host has."""
        total, used = _read(card / "mem_info_gtt_total"), _read(card / "mem_info_gtt_used")
        host = self._host.available()
        return 0 if total is None or used is None else min(max(0, total - used), host if host is not None else total)

    @property
    def problem(self) -> str:
        if self.available() is not None:
            return ""
        return "; ".join(d.problem for d in self.devices() if d.problem) or "no card was found"

    def processes(self) -> Processes | None:
        """What ROCm programs hold, by the compute driver. Vulkan programs are not on its list."""
        if not self._kfd.is_dir():
            return None
        found: dict[int, int | None] = {}
        for process in self._kfd.iterdir():
            if process.name.isdecimal():
                sizes = [_read(file) for file in process.glob("vram_*")]
                found[int(process.name)] = None if None in sizes else sum(s for s in sizes if s is not None)
        return found


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _name(card: Path) -> str:
    try:
        return f"AMD card {(card / 'vendor').read_text().strip()[2:]}:{(card / 'device').read_text().strip()[2:]}"
    except OSError:
        return "AMD card"


def _is_unified(card: Path) -> bool:
    carve_out, gtt = _read(card / "mem_info_vram_total") or 0, _read(card / "mem_info_gtt_total") or 0
    if carve_out >= gtt:
        return False
    try:
        metrics = (card / "gpu_metrics").read_bytes()
    except OSError:  # also of a card that newer kernels leave asleep
        return carve_out <= _SMALL_CARVE_OUT
    return len(metrics) > 2 and metrics[2] in _APU_METRICS
