"""Which source of memory a router reads, and why: `memory_source` and what the machine has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from enginerouter.errors import ConfigError, Problem
from enginerouter.swap.amdgpu import Amdgpu
from enginerouter.swap.memory import (
    Device,
    HostSource,
    Meminfo,
    MemorySource,
    NoSource,
    Processes,
    Psutil,
    host_source,
)
from enginerouter.swap.nvidia import Nvidia, Reader, find_readers


@dataclass(frozen=True, slots=True)
class Survey:
    """What the machine has. `nvidia_problem`: why NVIDIA cards could not be asked."""

    nvidia: tuple[Device, ...] = ()
    nvidia_problem: str = ""
    amd: tuple[Device, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """`why` completes "memory is read from …:"; `warnings` are what somebody should look at."""

    kind: Literal["host", "nvidia", "amd"]
    why: str
    warnings: tuple[str, ...] = ()


def choose(wanted: str, survey: Survey) -> Choice:
    """The source for `auto`, `nvidia` or `amd`. Raises ConfigError if what is asked for by name is not there."""
    nvidia = [d for d in survey.nvidia if d.is_readable]
    amd = [d for d in survey.amd if d.is_readable]
    if wanted == "nvidia":
        if not nvidia:
            raise _absent("nvidia", "no NVIDIA card whose memory can be read", survey.nvidia, survey.nvidia_problem)
        return _cards("nvidia", "asked for", nvidia, amd)
    if wanted == "amd":
        if not any(d.available_bytes is not None for d in survey.amd):
            raise _absent("amd", "no AMD card whose memory can be read", survey.amd, "")
        return _cards("amd", "asked for", amd or list(survey.amd), nvidia)
    if nvidia:
        return _cards("nvidia", "discrete cards", nvidia, amd)
    if amd:
        return _cards("amd", "discrete cards", amd, [])
    return _host(survey)


def _cards(kind: Literal["nvidia", "amd"], why: str, cards: Sequence[Device], others: Sequence[Device]) -> Choice:
    names = ", ".join(d.name for d in cards)
    warnings = []
    if len(cards) + len(others) > 1:
        every = ", ".join(d.name for d in [*cards, *others])
        left_out = "; not read: " + ", ".join(d.name for d in others) if others else ""
        warnings.append(
            f"several cards ({every}) are several pools of memory, but a router has one{left_out}; "
            "run one router for each card"
        )
    return Choice(kind, f"{why}: {names}", tuple(warnings))


def _host(survey: Survey) -> Choice:
    """Without a discrete card whose memory can be read, the host's memory is the pool."""
    unified = [d for d in (*survey.nvidia, *survey.amd) if d.is_unified]
    broken = [d for d in (*survey.nvidia, *survey.amd) if not d.is_unified and not d.is_readable]
    warnings = [f"{d.name} {d.problem}: its memory cannot be watched, the host's is" for d in broken]
    if survey.nvidia_problem:
        warnings.append(f"NVIDIA cards cannot be asked: {survey.nvidia_problem}; until a restart the host is watched")
    if unified:
        names = ", ".join(f"{d.name} {d.problem}".strip() for d in unified)
        return Choice("host", f"the host's memory is the pool: {names}", tuple(warnings))
    return Choice("host", "no discrete card was found" if not broken else "no card can be read", tuple(warnings))


def _absent(name: str, what: str, devices: Sequence[Device], problem: str) -> ConfigError:
    said = "; ".join(
        [f"{d.name} {d.problem or 'has no memory of its own'}" for d in devices] + [problem] * bool(problem)
    )
    message = f"{name!r} is asked for, but there is {what}" + (f" ({said})" if said else "")
    return ConfigError([Problem(message, path="memory_source", hint="`auto` picks what there is")])


class Picked:
    """The source that `memory_source` names; before `start`, and for `auto` on most machines, the host's."""

    def __init__(
        self,
        wanted: str,
        *,
        readers: Callable[[], Sequence[Reader]] = find_readers,
        amd: Callable[[], Amdgpu] = Amdgpu,
        host: Callable[[], HostSource] = host_source,
    ) -> None:
        self._wanted = wanted
        self._find_readers = readers
        self._find_amd = amd
        fixed: dict[str, Callable[[], HostSource]] = {"none": NoSource, "psutil": Psutil, "meminfo": Meminfo}
        self._picked: MemorySource = fixed.get(wanted, host)()
        self._found: tuple[Device, ...] = ()
        self.warnings: Sequence[str] = ()
        self._why = "asked for" if wanted in fixed else "not started yet"

    @property
    def name(self) -> str:
        return self._picked.name

    @property
    def why(self) -> str:
        return self._why

    @property
    def problem(self) -> str:
        return self._picked.problem

    @property
    def counts_host_pages(self) -> bool:
        return self._picked.counts_host_pages

    async def start(self) -> None:
        if self._wanted not in ("auto", "nvidia", "amd"):
            return
        nvidia, problems = await self._ask_nvidia() if self._wanted != "amd" else (None, [])
        # Looked for in a thread: of some cards a file is read that may have to wake them.
        amd = await asyncio.to_thread(self._find_amd)
        cards = tuple(nvidia.devices()) if nvidia is not None else ()
        survey = Survey(cards, "" if cards else "; ".join(problems), tuple(amd.devices()))
        choice = choose(self._wanted, survey)
        self._found = (*survey.nvidia, *survey.amd)
        fallen_back = [f"{problem}; {nvidia.name} is read" for problem in problems] if nvidia is not None else []
        self._why, self.warnings = choice.why, (*fallen_back, *choice.warnings)
        if choice.kind == "nvidia" and nvidia is not None:
            self._picked = nvidia
        elif choice.kind == "amd":
            self._picked = amd

    async def _ask_nvidia(self) -> tuple[Nvidia | None, list[str]]:
        """The first way to ask NVIDIA cards that gives an answer, and what is wrong with those before it."""
        readers = self._find_readers()
        problems = ["neither nvidia-smi nor the extra `gpu` is installed"] * (not readers and self._wanted == "nvidia")
        for reader in readers:
            nvidia = Nvidia(reader)
            try:
                await nvidia.start()
            finally:
                # Of one that is not read nothing is left behind, also where this is cancelled.
                if not any(d.is_readable for d in nvidia.devices()):
                    await nvidia.close()
            if nvidia.devices():
                return nvidia, problems
            problems.append(nvidia.problem)
        return None, problems

    async def refresh(self) -> None:
        await self._picked.refresh()

    def available(self) -> int | None:
        return self._picked.available()

    def devices(self) -> Sequence[Device]:
        return self._picked.devices() or self._found

    def processes(self) -> Processes | None:
        return self._picked.processes()

    async def close(self) -> None:
        await self._picked.close()
