"""The fixture: edges under test, stopped when the test is done."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from edge_kit import EdgeUnderTest, KeyRule, MakeEdge, routes

from enginerouter.web.body import BodyLimits, BufferBudget
from enginerouter.web.edge import Edge, EdgeRules
from enginerouter.web.keys import Keyring
from enginerouter.web.listener import GuardedServer, listen
from enginerouter.web.origin import Origins


@pytest.fixture
async def make_edge() -> AsyncIterator[MakeEdge]:
    runners: list[web.ServerRunner] = []

    async def make(
        *,
        keys: tuple[KeyRule, ...] = (),
        limits: BodyLimits | None = None,
        budget_bytes: int = 8 * 1024 * 1024,
        header_timeout_s: float = 5.0,
        keepalive_timeout_s: float = 20.0,
    ) -> EdgeUnderTest:
        origins = Origins(
            has_keys=bool(keys),
            allowed_hosts=("box.example", "*.home.arpa"),
            allowed_origins=("https://chat.example",),
            machine_names=("spark",),
        )
        rules = EdgeRules(routes(lambda: under_test), Keyring(keys), origins, limits or BodyLimits())
        edge = Edge(rules, BufferBudget(budget_bytes))
        server = GuardedServer(
            edge.handle,
            header_timeout_s=header_timeout_s,
            keepalive_timeout_s=keepalive_timeout_s,
            lingering_time_s=0.1,
        )
        runner, port = await listen(server, host="127.0.0.1", shutdown_timeout_s=0.2)
        runners.append(runner)
        under_test = EdgeUnderTest(port, edge, server)
        return under_test

    yield make
    for runner in runners:
        await runner.cleanup()
