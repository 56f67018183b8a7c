"""Systemd units under a real engine, and scripts that stand in for `systemctl`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from enginerouter.config.engines import SystemdUnit
from enginerouter.engines.directory import SlotDirectory
from enginerouter.engines.systemd_unit import SystemdUnitEngine
from enginerouter.errors import EngineCrashed
from enginerouter.slots import SlotId
from enginerouter.state import StateFile

UNIT_SLOT = SlotId("unit")


class UnitBox:
    """One router's worth of unit engines, without the router."""

    def __init__(self, folder: Path) -> None:
        self.directory = SlotDirectory(StateFile(folder / "state.json").router_id)
        self.engines: list[SystemdUnitEngine] = []
        self.crashes: asyncio.Queue[tuple[SlotId, EngineCrashed]] = asyncio.Queue()

    def engine(self, unit: str, port: int, *, call_timeout_s: float = 10.0, **settings: Any) -> SystemdUnitEngine:
        settings = {"start_timeout_s": 20.0, "stop_timeout_s": 5.0, "ready_path": "/health"} | settings
        whole = SystemdUnit(name="unit", unit=unit, base_url=f"http://127.0.0.1:{port}", **settings)
        engine = SystemdUnitEngine(whole, self.directory, call_timeout_s=call_timeout_s)
        engine.watch(lambda slot, error: self.crashes.put_nowait((slot, error)))
        self.engines.append(engine)
        return engine

    async def crash(self) -> EngineCrashed:
        return (await asyncio.wait_for(self.crashes.get(), 5))[1]

    async def close(self) -> None:
        for engine in self.engines:
            await engine.close()
