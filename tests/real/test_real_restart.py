"""A router that ends – killed, or asked to – and what becomes of its llama-server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from http_servers import LM_STUDIO, LmStudio, OllamaDaemon, ScriptedServer
from real_kit import Start, assert_said_by, demo_engine, is_gone, llama, slow_llama, until

pytestmark = pytest.mark.real


def test_a_killed_routers_engine_is_adopted_with_its_log_and_swapped_away_later(start: Start) -> None:
    router = start({"red": llama("red"), "blue": llama("blue")})
    router.ask("red")
    red = router.engine("red")
    log = router.engine_log("red")
    until(lambda: router.folder.joinpath("state.json").exists(), "the launch is on record")

    router.kill()
    assert not is_gone(red)
    router.start()

    until(lambda: router.phase("red") == "ready", "it is adopted")
    router.wait_log(f"adopted process {red.pid}")
    size = log.stat().st_size
    assert_said_by("red", router.ask("red"))
    assert router.engine("red") == red, "the same process, nothing loaded again"
    until(lambda: log.stat().st_size > size, "its output still goes to its log")
    assert log.read_text().count("listening on http") == 1

    assert_said_by("blue", router.ask("blue"))
    assert is_gone(red)
    assert router.settles()[-1].verdict in ("recovered", "enough", "plateau")
    assert_said_by("red", router.ask("red"))


def test_an_adopted_engine_that_dies_is_noticed_and_started_again(start: Start) -> None:
    router = start({"red": llama("red")})
    router.ask("red")
    red = router.engine("red")
    router.kill()
    router.start()
    until(lambda: router.phase("red") == "ready", "it is adopted")
    red.kill()
    until(lambda: router.phase("red") != "ready", "its end is noticed", timeout_s=5)
    assert_said_by("red", router.ask("red"))
    assert router.engine("red").pid != red.pid


def test_an_engine_whose_configuration_has_changed_meanwhile_is_ended_and_started_anew(start: Start) -> None:
    router = start({"red": llama("red")})
    router.ask("red")
    red = router.engine("red")
    router.kill()
    config = router.folder / "config.yaml"
    config.write_text(config.read_text().replace('"2048"', '"1024"'))
    router.start()
    until(lambda: is_gone(red), "the old one is ended")
    assert_said_by("red", router.ask("red"))
    assert "1024" in router.engine("red").cmdline()


def test_an_engine_killed_while_it_loads_under_a_killed_router_leaves_nothing(start: Start) -> None:
    """Killed between spawn and ready: the next router ends it or adopts it, but never runs two."""
    router = start({"slow": slow_llama()})
    assert router.post("/admin/swap?wait=0", {"engine": "slow"}).status == 202
    until(lambda: router.phase("slow") == "starting", "it starts", every_s=0.002)
    router.kill()
    router.start()
    assert_said_by("slow", router.ask("slow", words=1))
    assert router.engine("slow")  # exactly one


def test_a_router_that_is_told_to_stop_takes_its_engine_with_it(start: Start) -> None:
    router = start({"red": llama("red")})
    router.ask("red")
    red = router.engine("red")
    assert router.stop() == 0
    assert is_gone(red)


def test_on_exit_keep_leaves_the_engine_for_the_next_router(start: Start) -> None:
    router = start({"red": llama("red")}, on_exit="keep")
    router.ask("red")
    red = router.engine("red")
    assert router.stop() == 0
    assert not is_gone(red)
    router.start()
    until(lambda: router.phase("red") == "ready", "it is adopted")
    assert_said_by("red", router.ask("red"))
    assert router.engine("red") == red
    # So that the end of this test finds nothing left.
    router.post("/admin/unload", {"engine": "red"})
    until(lambda: is_gone(red), "it is unloaded")


@pytest.fixture
def elsewhere() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop in a thread of its own, for servers that answer while the test blocks."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(params=[OllamaDaemon, LmStudio])
def server(request: pytest.FixtureRequest, elsewhere: asyncio.AbstractEventLoop) -> Iterator[ScriptedServer]:
    made: ScriptedServer = request.param()
    asyncio.run_coroutine_threadsafe(made.listen(), elsewhere).result(5)
    yield made
    asyncio.run_coroutine_threadsafe(made.stop(), elsewhere).result(5)


def test_what_a_server_had_loaded_for_a_killed_router_is_taken_over_and_freed_later(
    server: ScriptedServer, start: Start
) -> None:
    is_ollama = isinstance(server, OllamaDaemon)
    model = "phi:3b" if is_ollama else "qwen"
    settings: dict[str, Any] = {"base_url": server.url}
    settings |= {"type": "ollama"} if is_ollama else {"type": "api_swap", "served_models": [model], **LM_STUDIO}
    light = {"type": "generic_process", "start_cmd": demo_engine("light")}
    router = start({"shared": settings, "light": light}, swap_memory_settle_timeout_s=2)
    slot = "shared" if is_ollama else f"shared/{model}"

    def loaded() -> list[str]:
        return server.running if isinstance(server, OllamaDaemon) else server.loaded

    assert router.ask(model)
    assert len(loaded()) == 1
    router.kill()
    router.start()
    until(lambda: router.phase(slot) == "ready", "it is taken over")
    assert router.ask(model)
    assert is_ollama or len(server.called("POST /api/v1/models/load")) == 1, "nothing is loaded again"
    assert router.ask("light")
    assert loaded() == []
