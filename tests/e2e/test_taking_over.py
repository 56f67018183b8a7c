"""When the router starts: what engines say of themselves is asked of all at once, and one that hangs holds up none."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from http_servers import HANGS, LM_STUDIO, LmStudio, OllamaDaemon, say
from reload_kit import from_file, process
from router_kit import MakeRouter, chat

from enginerouter.config.engines import ApiSwap, Ollama
from enginerouter.swap.phases import Phase
from enginerouter.web import app
from enginerouter.web.slots_of import MOST_REMEMBERED


@pytest.fixture
async def daemons() -> AsyncIterator[list[OllamaDaemon]]:
    servers = [OllamaDaemon(), OllamaDaemon()]
    for server in servers:
        await server.listen()
    yield servers
    for server in servers:
        await server.stop()


def ollamas(daemons: list[OllamaDaemon]) -> list[Ollama]:
    return [Ollama(name=f"ollama{n}", base_url=d.url, unload_timeout_s=0.4) for n, d in enumerate(daemons)]


async def test_lists_that_are_slow_are_waited_for_side_by_side(
    make_router: MakeRouter, daemons: list[OllamaDaemon]
) -> None:
    """Each answers only once the other has been asked, too."""
    both_asked = asyncio.Event()
    for daemon in daemons:
        daemon.fails["GET /api/ps"] = [both_asked, *say({"models": [{"name": "x", "model": "x", "size": 1}]})]
    router = await make_router((), http=ollamas(daemons), starts=False)
    starting = asyncio.ensure_future(router.router.start())
    async with asyncio.timeout(4):
        while not all(daemon.called("GET /api/ps") for daemon in daemons):
            await asyncio.sleep(0.002)
        assert (await router.get("/health")).status == 200, "it listens meanwhile"
        both_asked.set()
        await starting
    for daemon in daemons:
        daemon.fails.clear()


async def test_an_engine_left_running_answers_while_two_lists_hang(
    make_router: MakeRouter, daemons: list[OllamaDaemon]
) -> None:
    for daemon in daemons:
        daemon.fails["GET /api/ps"] = HANGS
    router = await make_router(("slow", "a"), http=ollamas(daemons), starts=False)
    router.slow.adopting.shut()  # before it in the configuration, and never done
    router.a.adopts = True
    starting = asyncio.ensure_future(router.router.start())
    await router.slow.adopting.reached.wait()
    await router.until(lambda: router.phase("a") is Phase.READY)
    assert (await router.ask(chat("a"))).text == "a serves a"
    assert router.a.starts == 0
    assert not starting.done(), "no swap begins before everybody has said what it holds"
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await starting


async def test_what_was_measured_of_a_model_that_only_its_engine_knows_outlives_runs_that_do_not_use_it(
    make_router: MakeRouter, tmp_path: Path
) -> None:
    server = LmStudio()
    await server.listen()
    settings = ApiSwap(name="lms", base_url=server.url, discover_models=True, unload_timeout_s=0.4, **LM_STUDIO)

    def remembered() -> dict[str, dict[str, float]]:
        learned: dict[str, dict[str, float]] = json.loads((tmp_path / "state.json").read_text())["learned"]
        return learned

    first = await make_router(("a",), http=[settings])
    assert (await first.ask(chat("gemma"))).text == "lms serves gemma"
    await first.stop()
    before = remembered()["lms/gemma"]
    assert before["start_s"] > 0
    for _ in range(2):
        other = await make_router(("a",), http=[settings])
        await other.load("a")
        await other.stop()
        assert remembered()["lms/gemma"] == before
    await server.stop()


async def test_of_such_figures_the_latest_are_kept_and_none_of_an_engine_that_is_gone(
    make_router: MakeRouter, tmp_path: Path
) -> None:
    state = tmp_path / "state.json"
    old = {f"a/m{n}": {"start_s": 1.0} for n in range(MOST_REMEMBERED + 50)}
    state.write_text(json.dumps({"learned": {"gone/x": {"start_s": 1.0}, **old}}))
    for _ in range(2):
        router = await make_router(("a",))
        await router.load("a")
        await router.stop()
        kept = list(json.loads(state.read_text())["learned"])
        assert kept == [*list(old)[50:], "a"], "the first ones were named longest ago"


async def test_a_daemon_that_hangs_at_the_start_holds_up_neither_the_router_nor_engines_without_memory(
    make_router: MakeRouter, daemons: list[OllamaDaemon]
) -> None:
    """The first answer of an embedder on the CPU used to come after every daemon's time-out, one after the other."""
    for daemon in daemons:
        daemon.fails["GET /api/ps"] = HANGS
    router = await make_router({"cpu": {"holds_memory": False}}, http=ollamas(daemons), starts=False)
    async with asyncio.timeout(3):
        await router.router.start()
        assert (await router.ask(chat("cpu"))).status == 200
    assert all(router.phase(f"ollama{n}") is Phase.COLD for n in range(2)), "they have not said anything yet"


async def test_a_reload_does_not_wait_for_a_daemon_that_hangs_at_the_start(
    daemons: list[OllamaDaemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What needs no memory comes at once; what needs some waits for its word, also if it is configured no longer."""
    monkeypatch.setattr(app, "TAKE_OVER_PATIENCE_S", 0.1)
    daemon, says = daemons[0], asyncio.Event()
    daemon.fails["GET /api/ps"] = [says, *say({"models": []})]
    hanging = {"type": "ollama", "base_url": daemon.url, "unload_timeout_s": 1.5}
    async with from_file(tmp_path, {"ollama": hanging, "a": process("one")}) as router:
        await router.rewrite({"ollama": hanging, "a": process("one"), "cpu": process("cpu", holds_memory=False)})
        assert (await router.said_by("cpu"))[1] == "cpu"
        await router.rewrite({"a": process("two")})
        asked = asyncio.ensure_future(router.said_by("a"))
        await router.until(lambda: router.router.coordinator.queued == 1)
        assert set(await router.slots()) >= {"ollama", "a"}, "it has not said yet what it has in memory"
        says.set()
        assert (await asked)[1] == "two"
        await router.until_gone("ollama")
