"""Two boxes whose chains name each other: a request goes round once at most, and is served."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from engine_server import FakeEngineServer, ok
from router_kit import CHAT, FAST, Answer, FakeEngine, MakeRouter, RouterUnderTest, chat

from enginerouter.config.engines import GenericProcess, Remote
from enginerouter.config.model import Alias, Config
from enginerouter.engines.remote import RemoteEngine
from enginerouter.swap.pick import Picked
from enginerouter.web.app import Router

VIA, INSTANCE = "X-EngineRouter-Via", "X-EngineRouter-Instance"


def box(folder: Path, name: str, other_port: int, *chain: str) -> RouterUnderTest:
    """A router with an engine of its own, `here`, and the other box as `there`."""
    folder.mkdir()
    there = Remote(name="there", base_url=f"http://127.0.0.1:{other_port}")
    engines = {"here": GenericProcess(name="here", start_cmd=("fake",), base_url="http://127.0.0.1:1"), "there": there}
    aliases = {"best": Alias(name="best", chain=chain)}
    config = Config(**{**FAST, "base_dir": folder, "engines": engines, "aliases": aliases})
    here = FakeEngine("here")
    here.server.name = name
    router = Router(config, memory=Picked("none"), engines={"here": here, "there": RemoteEngine(there)})
    return RouterUnderTest(router, {"here": here}, memory=None)  # type: ignore[arg-type]


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[tuple[RouterUnderTest, RouterUnderTest]]:
    """Each asks the other first."""
    # A port for the second, whose number the first has to know.
    holder = FakeEngineServer()
    await holder.listen()
    port = holder.port
    await holder.stop()
    first = box(tmp_path / "one", "one", port, "there/best", "here")
    await first.router.start()
    second = box(tmp_path / "two", "two", first.port, "there/best", "here")
    second.router.config = dataclasses.replace(second.router.config, port=port)
    await second.router.start()
    yield first, second
    await first.stop()
    await second.stop()


async def served(router: RouterUnderTest, **more: Any) -> Answer:
    answer = await router.ask(chat("best"), **more)
    assert answer.status == 200, answer.body
    return answer


async def test_a_circle_of_two_boxes_ends_at_the_second(two: tuple[RouterUnderTest, RouterUnderTest]) -> None:
    first, second = two
    answer = await served(first)
    assert answer.text == "two serves here"
    assert answer.header("x-enginerouter-resolved") == "there/best"
    seen = (await second.get("/metrics")).body.decode()
    assert 'fallback_total{from_model="there/best",to_model="here/here",reason="loop"} 1' in seen


async def test_once_it_is_known_the_box_before_is_not_asked_again(
    two: tuple[RouterUnderTest, RouterUnderTest], caplog: pytest.LogCaptureFixture
) -> None:
    first, second = two
    await served(first)
    before = (await first.get("/metrics")).body.decode().count('status="508"')
    assert before == 1
    for _ in range(3):
        await served(first)
    seen = (await first.get("/metrics")).body.decode()
    refused = [line for line in seen.splitlines() if "requests_total{" in line and 'status="508"' in line]
    assert [line.rpartition(" ")[2] for line in refused] == ["1"]
    assert 'reason="loop"} 4' in (await second.get("/metrics")).body.decode()


async def test_a_loop_is_no_failure_of_the_other_box(two: tuple[RouterUnderTest, RouterUnderTest]) -> None:
    first, second = two
    for _ in range(3):
        await served(first)
    assert (await served(second)).text == "one serves here"


async def test_a_request_that_came_back_is_refused_with_the_routers_own_id(
    two: tuple[RouterUnderTest, RouterUnderTest],
) -> None:
    first, _ = two
    answer = await first.ask(chat("here"), headers={VIA: "someone"})
    own = answer.header(INSTANCE)
    assert own
    back = await first.ask(chat("here"), headers={VIA: f"someone, {own}"})
    assert (back.status, back.error["code"], back.header(INSTANCE)) == (508, "loop_detected", own)
    assert back.header("x-should-retry") == "false"


async def test_more_than_four_hops_are_refused_and_nonsense_counts_as_none(
    two: tuple[RouterUnderTest, RouterUnderTest],
) -> None:
    first, _ = two
    assert (await first.ask(chat("here"), headers={VIA: "a,b,c,d"})).status == 200
    assert (await first.ask(chat("here"), headers={VIA: "a,b,c,d,e"})).status == 508
    assert (await first.ask(chat("here"), headers={VIA: "?,!, ,\u00e9," + "x" * 99})).status == 200


async def test_a_provider_hears_of_our_routers_only_until_it_is_seen_to_be_none(tmp_path: Path) -> None:
    cloud = FakeEngineServer()
    cloud.script = ok(b"{}")
    await cloud.listen()
    router = box(tmp_path / "one", "one", cloud.port, "there/best")
    await router.router.start()
    for headers in ({}, {}, {VIA: "someone"}):
        assert (await router.ask(chat("there/big"), headers=headers)).status == 200
    told = [VIA.lower() in {name.lower() for name, _ in got.headers} for got in cloud.received]
    assert told == [True, False, True], "what has come from another router says so everywhere"
    await router.stop()
    await cloud.stop()


async def test_a_router_is_told_with_every_request(two: tuple[RouterUnderTest, RouterUnderTest]) -> None:
    first, _ = two
    for _ in range(3):
        assert (await first.ask(chat("there/here"))).text == "two serves here"
    # Said, and not asked again: the second's chain would come back here.
    assert (await first.ask(chat("there/best"))).text == "two serves here"
    assert "508" in (await first.get("/metrics")).body.decode()


async def test_an_answer_that_is_committed_early_carries_the_routers_id(make_router: MakeRouter) -> None:
    """Else whoever asked would take this router for a provider."""
    router = await make_router(commit_after_s=0.0)
    router.engines["a"].starting.shut()
    async with router.client() as client:
        await client.send("POST", CHAT, chat(stream=True), {VIA: "someone"})
        assert await client.head() == 200
        assert client.header(INSTANCE)
        router.engines["a"].starting.open()


async def test_a_client_of_its_own_is_told_no_ids(two: tuple[RouterUnderTest, RouterUnderTest]) -> None:
    first, _ = two
    assert (await served(first)).header(INSTANCE) is None
