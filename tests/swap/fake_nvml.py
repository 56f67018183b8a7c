"""NVML as a script: the functions, names and error codes of nvidia-ml-py 13 that the router calls."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


class NVMLError(Exception):
    """The value is NVML's error code."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value

    def __str__(self) -> str:
        words = {3: "Not Supported", 4: "Insufficient Permissions", 9: "Driver Not Loaded", 15: "GPU is lost"}
        return words[self.value]


@dataclass
class Memory:
    total: int
    free: int
    used: int = 0


@dataclass
class ProcessInfo:
    pid: int
    usedGpuMemory: int | None


@dataclass
class Card:
    name: str
    memory: Memory | int  # an int is the error it answers with
    compute: list[ProcessInfo] | int = field(default_factory=list)
    graphics: list[ProcessInfo] | int = field(default_factory=list)


class FakeNvml:
    """Looks like the module `pynvml`. `gate` closed: every call hangs, as in a driver that does not answer."""

    NVMLError = NVMLError
    NVML_ERROR_NOT_SUPPORTED = 3

    def __init__(self, *cards: Card, init_error: int | None = None) -> None:
        self.cards = cards
        self.init_error = init_error
        self.inits = 0
        self.gate = threading.Event()
        self.gate.set()

    def nvmlInit(self) -> None:
        self.gate.wait()
        self.inits += 1
        if self.init_error is not None:
            raise NVMLError(self.init_error)

    def nvmlDeviceGetCount(self) -> int:
        self.gate.wait()
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        return self.cards[index]

    def nvmlDeviceGetName(self, card: Card) -> str:
        return card.name

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> Memory:
        return _or_error(card.memory)

    def nvmlDeviceGetComputeRunningProcesses(self, card: Card) -> list[ProcessInfo]:
        return _or_error(card.compute)

    def nvmlDeviceGetGraphicsRunningProcesses(self, card: Card) -> list[ProcessInfo]:
        return _or_error(card.graphics)


def _or_error(said):
    if isinstance(said, int):
        raise NVMLError(said)
    return said
