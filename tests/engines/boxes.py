"""Real processes under a real engine, for the tests of this folder."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from enginerouter.config.engines import GenericProcess
from enginerouter.engines import adoption, proctree
from enginerouter.engines.directory import SlotDirectory
from enginerouter.engines.process import GenericProcessEngine
from enginerouter.errors import EngineCrashed
from enginerouter.slots import SlotId
from enginerouter.state import StateFile

SCRIPTS = Path(__file__).with_name("scripts")
SLOT = SlotId("llama")


def fake(*options: str) -> tuple[str, ...]:
    """The command of a fake engine that listens at the engine's port."""
    return (sys.executable, "-I", "-S", str(SCRIPTS / "fake_engine.py"), "--port", "{port}", *options)


class Box:
    """One router's worth of engines, without the router."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = StateFile(folder / "state.json")
        self.directory = SlotDirectory(self.state.router_id)
        self.engines: list[GenericProcessEngine] = []
        self.crashes: asyncio.Queue[tuple[SlotId, EngineCrashed]] = asyncio.Queue()

    def engine(self, *start_cmd: str, name: str = "llama", **settings: Any) -> GenericProcessEngine:
        settings = {"start_timeout_s": 20.0, "stop_timeout_s": 5.0} | settings
        whole = GenericProcess(name=name, start_cmd=start_cmd, **settings)
        engine = GenericProcessEngine(whole, self.folder, self.state, self.directory)
        engine.watch(lambda slot, error: self.crashes.put_nowait((slot, error)))
        self.engines.append(engine)
        return engine

    def living(self) -> set[str]:
        """Launches of this router that still have a process."""
        return set(adoption.leftover_markers(proctree.snapshot(), self.state.router_id))

    async def close(self) -> None:
        for engine in self.engines:
            for slot in [SlotId(engine.name), *engine._children]:
                await engine.end(slot)
            await engine.close()
        await self.state.close()


def is_alive(pid: int) -> bool:
    info = proctree.read_process(pid)
    return info is not None and info.is_alive


async def logged(engine: GenericProcessEngine, word: str) -> list[str]:
    """The words of the first line of the log that begins with this one, as soon as it is there."""
    async with asyncio.timeout(10):
        while True:
            for line in await engine.log_tail(SlotId(engine.name), 1000):
                if line.startswith(f"{word} "):
                    return line.split()
            await asyncio.sleep(0.005)
