"""An Ollama daemon behind a whole router: it is freed model by model, and seen to be free; it is never stopped."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from engine_server import ok
from http_servers import ERROR_SHAPES, HANGS, OllamaDaemon, say
from router_kit import MakeRouter, chat

from enginerouter.config.engines import Ollama
from enginerouter.config.model import ApiKey
from enginerouter.swap.phases import Phase


@pytest.fixture(autouse=True)
def _no_cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def ollama(server: OllamaDaemon, **more: Any) -> Ollama:
    return Ollama(name="ollama", base_url=server.url, **{"unload_timeout_s": 0.4, **more})


async def test_every_model_it_loaded_is_unloaded_and_seen_to_be_gone(
    make_router: MakeRouter, daemon: OllamaDaemon
) -> None:
    router = await make_router(("a",), http=[ollama(daemon)])
    await router.load("llama3")
    await router.load("phi:3b")
    assert daemon.running == ["llama3:latest", "phi:3b"], "two models of one daemon are its own business"
    daemon.slow_unload = 3
    await router.load("a")
    assert daemon.running == []
    unloads = daemon.called("POST /api/generate")
    assert [(u["model"], u["keep_alive"]) for u in unloads] == [("llama3:latest", 0), ("phi:3b", 0)]
    assert len(daemon.called("GET /api/ps")) >= 4, "it is looked at until it is gone"


async def test_a_wedged_unload_holds_up_the_end_of_the_router_for_stop_timeout_s_at_most(
    make_router: MakeRouter, daemon: OllamaDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    """A signal used to take `unload_timeout_s`, 60 s, which the unit's stop time did not count."""
    router = await make_router((), http=[ollama(daemon, unload_timeout_s=60.0, stop_timeout_s=0.3)])
    await router.load("phi:3b")
    daemon.lies.add("unload")
    began_at = time.monotonic()
    await router.stop()
    assert time.monotonic() - began_at < 2.0
    assert "ollama could not be stopped: it is not free after 0.3 s and is left as it is" in caplog.text


async def test_a_wedged_unload_is_an_error_that_names_the_models(make_router: MakeRouter, daemon: OllamaDaemon) -> None:
    router = await make_router(("a",), http=[ollama(daemon)])
    await router.load("phi:3b")
    daemon.lies.add("unload")
    failed = await router.ask(chat("a"))
    assert (failed.status, failed.error["code"]) == (502, "free_failed")
    assert "'ollama' could not be freed: still in its memory after 0.4 s: phi:3b" in failed.error["message"]
    assert not router.engines["a"].starts
    daemon.lies.clear()
    await router.load("a")


async def test_the_command_line_is_the_fallback(make_router: MakeRouter, daemon: OllamaDaemon, tmp_path: Path) -> None:
    """A stand-in for `ollama stop MODEL` notes what it was asked, and where the daemon is."""
    program = tmp_path / "bin" / "ollama"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$1 $2 $OLLAMA_HOST" >> {tmp_path}/asked\n')
    program.chmod(0o755)
    router = await make_router(("a",), http=[ollama(daemon)])
    await router.load("phi:3b")
    daemon.fails["POST /api/generate"] = list(say({"error": "no"}, 500))
    failed = await router.ask(chat("a"))
    assert "500: no" in failed.error["message"]
    assert (tmp_path / "asked").read_text() == f"stop phi:3b {daemon.url}\n"
    daemon.fails.clear()


async def test_a_command_that_hangs_is_ended(make_router: MakeRouter, daemon: OllamaDaemon, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "ollama"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    program.chmod(0o755)
    router = await make_router(("a",), http=[ollama(daemon)])
    await router.load("phi:3b")
    daemon.lies.add("unload")
    assert (await router.ask(chat("a"))).error["code"] == "free_failed"
    daemon.lies.clear()


@pytest.mark.parametrize("shape", ERROR_SHAPES)
async def test_an_error_of_the_list_is_never_read_as_nothing_loaded(
    make_router: MakeRouter, daemon: OllamaDaemon, shape: str
) -> None:
    status, body, _words = ERROR_SHAPES[shape]
    router = await make_router(("a",), http=[ollama(daemon)])
    await router.load("phi:3b")
    daemon.fails["GET /api/ps"] = list(ok(body, status=status))
    failed = await router.ask(chat("a"))
    assert (failed.status, failed.error["code"]) == (502, "free_failed"), shape
    assert "/api/ps" in failed.error["message"]
    assert not router.engines["a"].starts
    daemon.fails.clear()


async def test_a_list_that_hangs_is_an_error_and_keeps_the_router_from_nothing_else(
    make_router: MakeRouter, daemon: OllamaDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enginerouter.engines.ollama.LIST_TIMEOUT_S", 0.1)
    daemon.fails["GET /api/ps"] = HANGS
    router = await make_router(("a",), http=[ollama(daemon)])
    assert (await router.get("/health")).status == 200
    failed = await router.ask(chat("a"))
    assert "gave no whole answer within 0.1 s" in failed.error["message"]
    daemon.fails.clear()
    await router.load("a")


async def test_models_that_run_elsewhere_hold_nothing_here(make_router: MakeRouter, daemon: OllamaDaemon) -> None:
    router = await make_router(("a",), http=[ollama(daemon)])
    await router.load("gpt-oss:120b-cloud")
    await router.load("a")
    assert daemon.elsewhere == ["gpt-oss:120b-cloud"]
    assert not daemon.called("POST /api/generate")


async def test_a_daemon_with_models_in_memory_is_resident_when_the_router_starts(
    make_router: MakeRouter, daemon: OllamaDaemon
) -> None:
    daemon.running.append("phi:3b")
    router = await make_router(("a",), http=[ollama(daemon)])
    assert router.phase("ollama") is Phase.READY
    await router.load("a")
    assert daemon.running == []


async def test_a_daemon_that_is_not_there_is_named_and_evicts_nothing(
    make_router: MakeRouter, daemon: OllamaDaemon
) -> None:
    settings = ollama(daemon, served_models=("phi:3b",))
    await daemon.stop()
    router = await make_router(("a",), http=[settings])
    await router.load("a")
    failed = await router.ask(chat("phi:3b"))
    assert (failed.status, failed.error["code"]) == (502, "start_failed")
    assert (
        f"http://127.0.0.1:{daemon.port}/api/version cannot be reached: connection refused" in failed.error["message"]
    )
    assert router.phase("a") is Phase.READY


# --- its models


async def test_its_models_are_listed_and_served_without_being_declared(
    make_router: MakeRouter, daemon: OllamaDaemon
) -> None:
    router = await make_router(("a",), http=[ollama(daemon)])
    ids = [m["id"] for m in (await router.get("/v1/models")).json["data"]]
    assert ids == ["a", "llama3:latest", "phi:3b", "gpt-oss:120b-cloud"]
    for name in ("llama3", "llama3:latest", "ollama/llama3:latest", "ollama/llama3"):
        said = await router.ask(chat(name))
        assert said.text == "ollama serves llama3:latest", name
        assert said.header("X-EngineRouter-Resolved") == "ollama/llama3:latest"
    assert (await router.get("/v1/models/phi:3b")).json["owned_by"] == "ollama"


async def test_an_unknown_name_evicts_nothing_whatever_it_looks_like(
    make_router: MakeRouter, daemon: OllamaDaemon
) -> None:
    """The predecessor swapped to Ollama for every name that it did not know."""
    router = await make_router(("a",), http=[ollama(daemon)])
    await router.load("a")
    for name in ("gpt-4-typo", "ollama/gpt-4-typo", "ollama/", "ollama", "llama3:8b", "123"):
        failed = await router.ask(chat(name))
        assert (failed.status, failed.error["code"]) == (404, "model_not_found"), name
    assert router.phase("a") is Phase.READY
    assert router.engines["a"].starts == 1
    assert len(daemon.called("GET /api/tags")) == 1, "a fresh list is not asked for again"


async def test_a_model_pulled_meanwhile_is_found_when_the_list_is_old(
    make_router: MakeRouter, daemon: OllamaDaemon
) -> None:
    router = await make_router((), http=[ollama(daemon, tags_cache_ttl_s=0.0)])
    assert (await router.ask(chat("new:1b"))).status == 404
    daemon.models.append("new:1b")
    assert (await router.ask(chat("new:1b"))).text == "ollama serves new:1b"


async def test_where_the_daemon_cannot_say_what_it_has_the_reason_is_told(
    make_router: MakeRouter, daemon: OllamaDaemon
) -> None:
    daemon.fails["GET /api/tags"] = list(say({"error": "disk gone"}, 500))
    router = await make_router(("a",), http=[ollama(daemon)])
    await router.load("a")
    failed = await router.ask(chat("ollama/phi:3b"))
    assert (failed.status, failed.error["code"]) == (503, "engine_unavailable")
    assert "500: disk gone" in failed.error["message"]
    assert (await router.ask(chat("phi:3b"))).status == 404
    assert router.phase("a") is Phase.READY


async def test_a_list_of_models_that_hangs_holds_nobody_up_for_long(
    make_router: MakeRouter, daemon: OllamaDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enginerouter.web.naming.PATIENCE_S", 0.1)
    monkeypatch.setattr("enginerouter.web.naming.CATALOGUE_PATIENCE_S", 0.1)
    daemon.fails["GET /api/tags"] = HANGS
    router = await make_router(("a",), http=[ollama(daemon)])
    assert [m["id"] for m in (await router.get("/v1/models")).json["data"]] == ["a"]
    assert (await router.ask(chat("nobody"), within_s=4.0)).status == 404
    await router.load("a")


async def test_names_of_discovered_models_are_no_labels_of_metrics(
    make_router: MakeRouter, daemon: OllamaDaemon
) -> None:
    router = await make_router((), http=[ollama(daemon)])
    await router.load("phi:3b")
    metrics = (await router.get("/metrics")).body.decode()
    assert 'requested="other",target="ollama/other"' in metrics
    assert "phi" not in metrics


async def test_a_rename_may_name_a_model_that_only_the_daemon_knows(
    make_router: MakeRouter, daemon: OllamaDaemon
) -> None:
    router = await make_router((), http=[ollama(daemon)], aliases={"small": "phi:3b", "big": "ollama/llama3"})
    assert (await router.ask(chat("big"))).text == "ollama serves llama3"
    assert {m["id"] for m in (await router.get("/v1/models")).json["data"]} >= {"small", "big"}
    assert (await router.ask(chat("small"))).text == "ollama serves phi:3b"


async def test_a_key_is_kept_to_its_models_and_to_this_machine(make_router: MakeRouter, daemon: OllamaDaemon) -> None:
    keys = (
        ApiKey(name="few", key="few", models=("llama3*",)),
        ApiKey(name="home", key="home", remote=False),
        ApiKey(name="all", key="all"),
    )
    router = await make_router((), http=[ollama(daemon)], api_keys=keys)

    async def status(key: str, model: str) -> int:
        return (await router.ask(chat(model), headers={"Authorization": f"Bearer {key}"})).status

    assert [await status("few", m) for m in ("llama3", "ollama/llama3", "phi:3b", "ollama/phi:3b")] == [
        200,
        200,
        404,
        404,
    ]
    assert [await status("home", m) for m in ("phi:3b", "gpt-oss:120b-cloud")] == [200, 403]
    assert await status("all", "gpt-oss:120b-cloud") == 200
