"""The fixtures: routers with scripted engines, and scripted servers.

After every test nothing may be left of a router, nor a traceback logged.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from http_servers import LmStudio, OllamaDaemon
from router_kit import FakeEngine, FakeMemory, MakeRouter, RouterUnderTest, make_config

from enginerouter.config.engines import EngineSettings
from enginerouter.engines.directory import SlotDirectory
from enginerouter.engines.registry import build_engine
from enginerouter.state import StateFile
from enginerouter.swap.pick import Picked
from enginerouter.web import exchange
from enginerouter.web.app import Router, upstream_models


@pytest.fixture
async def daemon() -> AsyncIterator[OllamaDaemon]:
    server = OllamaDaemon()
    await server.listen()
    yield server
    await server.stop()


@pytest.fixture
async def lms() -> AsyncIterator[LmStudio]:
    server = LmStudio()
    await server.listen()
    yield server
    await server.stop()


@pytest.fixture
async def make_router(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[MakeRouter]:
    # Scripted engines notice a crash sooner than real ones.
    monkeypatch.setattr(exchange, "CRASH_NOTICE_S", 0.08)
    caplog.set_level(logging.DEBUG, "enginerouter")
    made: list[RouterUnderTest] = []
    before = asyncio.all_tasks()

    async def make(
        engines: Mapping[str, Mapping[str, Any]] | tuple[str, ...] = ("a", "b"),
        *,
        settles: bool = False,
        starts: bool = True,
        http: Sequence[EngineSettings] = (),
        **settings: Any,
    ) -> RouterUnderTest:
        named = engines if isinstance(engines, Mapping) else {name: {} for name in engines}
        memory = FakeMemory()
        fakes = {name: FakeEngine(name, memory) for name in named}
        config = make_config(tmp_path, named, **settings)
        config = dataclasses.replace(config, engines={**config.engines, **{e.name: e for e in http}})
        upstream = upstream_models(config)
        state = StateFile(tmp_path / "other.json")
        real = {
            e.name: build_engine(e, state, tmp_path, SlotDirectory(""), models=upstream.get(e.name, ())) for e in http
        }
        router = Router(config, memory=memory if settles else Picked("none"), engines={**fakes, **real})
        under_test = RouterUnderTest(router, fakes, memory)
        made.append(under_test)
        if starts:
            await router.start()
        return under_test

    yield make
    for under_test in made:
        if not under_test._stopped:
            await under_test.idle()
        await under_test.stop()
        for slot in under_test.router.coordinator.slots.values():
            assert not slot.leases, "a lease outlived its request"
            assert not slot.queue, "a ticket outlived its request"
    for _ in range(5):
        await asyncio.sleep(0)
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, f"tasks were left behind: {left}"
    # By phase: `caplog.records` alone would be those of the teardown.
    logged = [record for phase in ("setup", "call", "teardown") for record in caplog.get_records(phase)]
    tracebacks = [r.getMessage() for r in logged if r.exc_info]
    assert not tracebacks, f"tracebacks in the log: {tracebacks}"
