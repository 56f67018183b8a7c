"""Reloads of a real file under real requests: what has changed drains and restarts, the rest does not notice."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_server import FakeEngineServer, ok
from reloaded_kit import Reloaded, child, lives, reloaded
from router_kit import chat

TWO: dict[str, Any] = {"a": child("a"), "b": child("b")}
EVERYTHING_ELSE: dict[str, Any] = {
    "max_body_mib": 3,
    "max_queued_requests": 7,
    "queue_timeout_s": 5,
    "idle_unload_s": 900,
    "allowed_origins": ["https://chat.example"],
    "swap_keepalive_interval_s": 2,
    "log_level": "WARNING",
    "metrics_require_key": True,
    "default_model": "a",
    "health": {"enabled": True, "open_s": 9},
    "cache": {"embeddings": True},
}


# --- what has not changed, and what counts at once


async def test_a_reload_of_the_same_file_changes_nothing(tmp_path: Path) -> None:
    async with reloaded(tmp_path, TWO) as router:
        pid = await router.pid()
        async with router.streaming() as stream:
            for _ in range(3):
                await router.reload()
            await stream.finish()
        assert await router.pid() == pid


async def test_what_does_not_concern_the_launch_counts_at_once_and_restarts_nothing(tmp_path: Path) -> None:
    settings = {"start_timeout_s": 77, "stop_timeout_s": 3, "idle_unload_s": 800, "max_in_flight": 5, "pin": False}
    async with reloaded(tmp_path, TWO) as router:
        pid = await router.pid()
        async with router.streaming() as stream:
            await router.reload({"a": {**child("a"), **settings}, "b": child("b")}, **EVERYTHING_ELSE)
            await stream.finish()
        assert await router.pid() == pid
        body = b'{"model": "a", "messages": [], "x": "' + b"x" * (3 << 20) + b'"}'
        assert (await router.ask(body)).status == 413
        preflight = await router.ask(path="/v1/models", method="OPTIONS", headers={"Origin": "https://chat.example"})
        assert preflight.header("Access-Control-Allow-Origin") == "https://chat.example"
        assert (await router.ask(chat(None))).status == 200, "default_model"


async def test_keys_count_at_once_and_a_stream_of_a_key_that_is_gone_goes_on(tmp_path: Path) -> None:
    async with reloaded(tmp_path, TWO, api_keys=["old-key"]) as router:
        old, new = {"Authorization": "Bearer old-key"}, {"Authorization": "Bearer new-key"}
        async with router.streaming(**old) as stream:
            router.write(TWO, api_keys=["new-key"])
            assert (await router.try_reload(**old)).status == 200
            assert (await router.ask(chat(), headers=old)).status == 401
            assert (await router.ask(chat(), headers=new)).status == 200
            await stream.goes_on()
            await stream.finish()
        assert (await router.try_reload(**old)).status == 401
        assert (await router.try_reload(**new)).status == 200


async def test_aliases_models_and_their_parameters_count_at_once(tmp_path: Path) -> None:
    async with reloaded(tmp_path, TWO, aliases={"x": "a"}) as router:
        assert (await router.said("x")).startswith("a ")
        pid = await router.pid()
        models = [{"id": "m", "engine": "a", "set_params": {"temperature": 0.25}}]
        await router.reload(TWO, aliases={"y": {"chain": ["a", "b"]}}, models=models)
        assert (await router.ask(chat("x"))).status == 404
        assert (await router.said("y")).startswith("b ") is False
        asked = (await router.ask(chat("m"))).json["asked"]
        assert asked["temperature"] == 0.25
        assert await router.pid("m") == pid
        listed = [m["id"] for m in (await router.get("/v1/models")).json["data"]]
        assert {"m", "y"} <= set(listed)
        assert "x" not in listed


async def test_what_is_sent_to_an_engine_changes_with_its_next_request(tmp_path: Path) -> None:
    async with reloaded(tmp_path, TWO) as router:
        pid = await router.pid()
        await router.reload({"a": child("a", headers={"X-Team": "blue"}, api_key="k2"), "b": child("b")})
        answer = await router.ask(chat())
        assert int(answer.text.split()[1]) == pid
        assert answer.json["headers"]["x-team"] == "blue"
        assert answer.json["headers"]["authorization"] == "Bearer k2"


# --- engines that change, go and come


async def test_a_changed_engine_answers_to_the_end_and_restarts_for_who_waits(tmp_path: Path) -> None:
    async with reloaded(tmp_path, TWO) as router:
        async with router.streaming() as stream:
            told = await router.reload({"a": child("a", "--word", "new"), "b": child("b")})
            assert told["changes"]["changed"] == ["a"]
            waiting = asyncio.ensure_future(router.said())
            await stream.goes_on()
            await asyncio.sleep(0.1)
            assert not waiting.done(), "it waits for the new one"
            assert lives(stream.pid)
            await stream.finish()
            name, pid, word = (await waiting).split()
        assert (name, word) == ("a", "new")
        assert int(pid) != stream.pid
        assert not lives(stream.pid)


async def test_a_changed_engine_that_is_idle_ends_at_once_and_is_not_started_for_nobody(tmp_path: Path) -> None:
    async with reloaded(tmp_path, TWO) as router:
        pid = await router.pid()
        await router.reload({"a": child("a", env={"COLOUR": "red"}), "b": child("b")})
        await router.until(lambda: not lives(pid))
        assert (await router.get("/status")).json["queued"] == 0
        await router.until(lambda: router.phase("a").value == "cold")
        assert await router.pid() != pid


async def test_a_removed_engine_answers_to_the_end_and_then_is_gone(tmp_path: Path) -> None:
    async with reloaded(tmp_path, TWO) as router:
        async with router.streaming() as stream:
            await router.reload({"b": child("b")})
            gone = await router.ask(chat("a"))
            assert (gone.status, gone.error["code"]) == (404, "model_not_found")
            await stream.goes_on()
            await stream.finish()
        await router.until(lambda: not lives(stream.pid))
        assert (await router.said("b")).startswith("b ")
        status = (await router.get("/status")).json
        assert [s["slot"] for s in status["slots"]] == ["b"]


async def test_who_waits_for_an_engine_that_is_removed_is_told_at_once(tmp_path: Path) -> None:
    engines = {"a": child("a", max_in_flight=1), "b": child("b")}
    async with reloaded(tmp_path, engines) as router, router.streaming() as stream:
        waiting = asyncio.ensure_future(router.ask(chat()))
        await router.until(lambda: router.router.coordinator.queued == 1)
        await router.reload({"b": child("b")})
        answer = await waiting
        assert answer.status == 503
        assert "the configuration was reloaded" in answer.error["message"]
        assert answer.header("Retry-After") == "1"
        await stream.finish()


async def test_who_waits_in_a_chain_goes_on_when_its_target_is_removed(tmp_path: Path) -> None:
    engines = {"a": child("a", max_in_flight=1), "b": child("b", holds_memory=False)}
    async with reloaded(tmp_path, engines, aliases={"best": {"chain": ["a", "b"]}}) as router:
        async with router.streaming() as stream:
            waiting = asyncio.ensure_future(router.said("best"))
            await router.until(lambda: router.router.coordinator.queued == 1)
            await router.reload({"b": engines["b"]})
            assert (await waiting).startswith("b ")
            await stream.finish()


async def test_an_engine_that_is_back_before_it_has_gone_restarts(tmp_path: Path) -> None:
    async with reloaded(tmp_path, TWO) as router, router.streaming() as stream:
        await router.reload({"b": child("b")})
        await router.reload(TWO)
        waiting = asyncio.ensure_future(router.pid())
        await stream.goes_on()
        await stream.finish()
        assert await waiting != stream.pid


async def test_a_disabled_engine_goes_and_an_enabled_one_comes(tmp_path: Path) -> None:
    async with reloaded(tmp_path, {"a": child("a"), "b": child("b", enabled=False)}) as router:
        pid = await router.pid()
        assert (await router.ask(chat("b"))).status == 404
        await router.reload({"a": child("a", enabled=False), "b": child("b")})
        assert (await router.said("b")).startswith("b ")
        assert (await router.ask(chat("a"))).status == 404
        await router.until(lambda: not lives(pid))


async def test_an_engine_may_become_one_of_another_kind(tmp_path: Path) -> None:
    server = FakeEngineServer("a")
    await server.listen()
    remote = {"type": "remote", "base_url": f"http://127.0.0.1:{server.port}"}
    try:
        async with reloaded(tmp_path, {"a": child("a")}) as router:
            pid = await router.pid()
            await router.reload({"a": remote})
            assert (await router.ask(chat())).status == 200
            assert len(server.received) == 1
            assert not lives(pid)
            await router.reload({"a": child("a")})
            assert (await router.said()).startswith("a ")
            assert len(server.received) == 1
    finally:
        await server.stop()


async def test_a_remote_engine_moves_under_its_requests(tmp_path: Path) -> None:
    here, there, gate = FakeEngineServer("here"), FakeEngineServer("there"), asyncio.Event()
    await here.listen()
    await there.listen()
    here.script = [gate, *ok(b'{"from": "here"}')]
    there.script = ok(b'{"from": "there"}')

    def at(server: FakeEngineServer) -> dict[str, Any]:
        return {"r": {"type": "remote", "base_url": f"http://127.0.0.1:{server.port}"}}

    try:
        async with reloaded(tmp_path, at(here)) as router:
            waiting = asyncio.ensure_future(router.ask(chat("r")))
            await here.exchange()
            await router.reload(at(there))
            assert (await router.ask(chat("r"))).json == {"from": "there"}, "it need not wait for the other one"
            gate.set()
            assert (await waiting).json == {"from": "here"}
    finally:
        await here.stop()
        await there.stop()


async def test_a_walk_keeps_the_chain_it_began_with(tmp_path: Path) -> None:
    first, second, gate = FakeEngineServer("first"), FakeEngineServer("second"), asyncio.Event()
    await first.listen()
    await second.listen()
    first.script = [gate, *ok(b'{"error": {"message": "boom"}}', status=500)]
    engines = {s.name: {"type": "remote", "base_url": f"http://127.0.0.1:{s.port}"} for s in (first, second)}
    try:
        async with reloaded(tmp_path, engines, aliases={"best": {"chain": ["first", "second"]}}) as router:
            waiting = asyncio.ensure_future(router.ask(chat("best")))
            await first.exchange()
            await router.reload(engines, aliases={"best": {"chain": ["first"]}})
            gate.set()
            answer = await waiting
            assert answer.header("X-EngineRouter-Resolved") == "second/second"
    finally:
        await first.stop()
        await second.stop()


async def test_a_manifest_is_read_again_and_only_the_profile_that_changed_restarts(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.touch()
    manifest = tmp_path / "profiles.yaml"

    def profiles(**contexts: int) -> None:
        manifest.write_text(json.dumps({n: {"model": "m.gguf", "flags": {"ctx-size": c}} for n, c in contexts.items()}))

    command = [*child("{id}")["start_cmd"], "--model", "{model}", "{flags}"]
    engines = {"p": {**child("p"), "start_cmd": command, "manifest": "profiles.yaml"}}
    profiles(x=1, y=1)
    async with reloaded(tmp_path, engines) as router:
        pid = await router.pid("x")
        profiles(x=1, y=2, z=3)
        await router.reload()
        assert await router.pid("x") == pid, "only y has changed"
        assert (await router.said("z")).startswith("z ")
        pid = await router.pid("x")
        profiles(x=5)
        await router.reload()
        await router.until(lambda: not lives(pid))
        assert await router.pid("x") != pid
        assert (await router.ask(chat("y"))).status == 404


async def test_an_open_circuit_of_an_engine_that_has_not_changed_stays_open(tmp_path: Path) -> None:
    server = FakeEngineServer("r")
    await server.listen()
    server.script = ok(b'{"error": {"message": "boom"}}', status=500)
    engines = {"r": {"type": "remote", "base_url": f"http://127.0.0.1:{server.port}"}, "b": child("b")}
    try:
        async with reloaded(tmp_path, engines, aliases={"best": {"chain": ["r", "b"]}}) as router:
            for _ in range(2):
                assert (await router.said("best")).startswith("b ")
            await router.reload(engines, aliases={"best": {"chain": ["r", "b"]}}, queue_timeout_s=99)
            seen = len(server.received)
            assert (await router.said("best")).startswith("b ")
            assert len(server.received) == seen, "it is still passed over"
            engines["r"]["base_url"] += "/v1"
            await router.reload(engines, aliases={"best": {"chain": ["r", "b"]}})
            await router.said("best")
            assert len(server.received) == seen + 1, "a changed engine begins anew"
    finally:
        await server.stop()


async def test_a_cache_is_switched_on_and_off_and_forgets_what_a_changed_engine_said(tmp_path: Path) -> None:
    body = json.dumps({"model": "a", "input": "x"}).encode()

    async def embed(router: Reloaded) -> str | None:
        answer = await router.ask(body, path="/v1/embeddings", within_s=20)
        assert answer.status == 200, answer.body
        return answer.header("X-EngineRouter-Cache")

    async with reloaded(tmp_path, TWO) as router:
        assert await embed(router) is None
        await router.reload(TWO, cache={"embeddings": True})
        assert "enginerouter_cache_up" in (await router.get("/metrics")).body.decode()
        assert [await embed(router), (await router.get("/status")).status] == ["miss", 200]
        await router.reload(TWO)
        assert await embed(router) is None


# --- what is wrong


def halved(router: Reloaded) -> None:
    text = router.file.read_text()
    router.file.write_text(text[: len(text) // 2])


def missing(router: Reloaded) -> None:
    router.file.unlink()


def a_folder(router: Reloaded) -> None:
    router.file.unlink()
    router.file.mkdir()


def a_bomb(router: Reloaded) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    router.file.write_text("\n".join(lines))


def no_text(router: Reloaded) -> None:
    router.file.write_bytes(b"port: 1\n\xff\xfe\x00")


def empty(router: Reloaded) -> None:
    router.file.write_text("")


def a_cycle(router: Reloaded) -> None:
    router.write(TWO, aliases={"x": {"chain": ["y"]}, "y": {"chain": ["x"]}})


def no_manifest(router: Reloaded) -> None:
    router.write({**TWO, "p": {**child("p"), "manifest": "nowhere.yaml"}})


def a_bad_manifest(router: Reloaded) -> None:
    (router.folder / "bad.yaml").write_text("x: {modle: m.gguf}")
    router.write({**TWO, "p": {**child("p"), "manifest": "bad.yaml"}})


def bad_certificates(router: Reloaded) -> None:
    for name in ("cert.pem", "key.pem"):
        (router.folder / name).write_text("no PEM at all")
    router.write(TWO, tls_cert_file="cert.pem", tls_key_file="key.pem")


BAD: dict[str, tuple[Callable[[Reloaded], None], str]] = {
    "half-written": (halved, "config.yaml:"),
    "missing": (missing, "there is no such file"),
    "a folder": (a_folder, "this is a folder, not a file"),
    "a bomb": (a_bomb, "config.yaml"),
    "no text": (no_text, "not UTF-8"),
    "empty": (empty, "no engines"),
    "a cycle": (a_cycle, "in a circle"),
    "no manifest": (no_manifest, "nowhere.yaml"),
    "a bad manifest": (a_bad_manifest, "modle"),
    "bad certificates": (bad_certificates, "cannot be used"),
}


@pytest.mark.parametrize("what", BAD)
async def test_anything_wrong_keeps_what_runs_and_is_said_everywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    break_it, says = BAD[what]
    caplog.set_level(logging.INFO, "enginerouter")
    async with reloaded(tmp_path, TWO, aliases={"x": "a"}) as router:
        pid = await router.pid("x")
        async with router.streaming() as stream:
            break_it(router)
            answer = await router.try_reload()
            assert 400 <= answer.status < 500, answer.body
            assert says in json.dumps(answer.error, ensure_ascii=False)
            assert answer.error["problems"]
            await stream.finish()
        assert await router.pid("x") == pid
        assert says in caplog.text
        assert says in json.dumps((await router.get("/status")).json, ensure_ascii=False)
        if router.file.is_dir():
            router.file.rmdir()
        await router.reload(TWO)
        assert says not in json.dumps((await router.get("/status")).json, ensure_ascii=False)
        assert (await router.ask(chat("x"))).status == 404


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_a_file_that_may_not_be_read_keeps_what_runs(tmp_path: Path) -> None:
    async with reloaded(tmp_path, TWO) as router:
        router.file.chmod(0)
        answer = await router.try_reload()
        assert 400 <= answer.status < 500
        assert "cannot be read" in json.dumps(answer.error)
        router.file.chmod(0o600)


async def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    async with reloaded(tmp_path, TWO) as router:
        router.write({"a": {"type": "generic_proces"}, "b": child("b", pin="maybe")}, prot=1)
        answer = await router.try_reload()
        assert len(answer.error["problems"]) == 3, answer.error


async def test_others_than_admins_may_not_reload_and_do_not_see_what_is_wrong(tmp_path: Path) -> None:
    keys = ["boss", {"name": "guest", "key": "guest"}]
    async with reloaded(tmp_path, TWO, api_keys=keys) as router:
        guest = {"Authorization": "Bearer guest"}
        assert (await router.try_reload(**guest)).status == 403
        router.write({"secret": {"type": "nonsense"}}, api_keys=keys)
        assert (await router.try_reload(Authorization="Bearer boss")).status >= 400
        assert "nonsense" not in (await router.get("/status", **guest)).body.decode()


async def test_what_needs_a_restart_is_named_until_it_has_had_one(tmp_path: Path) -> None:
    async with reloaded(tmp_path, TWO) as router:
        for _ in range(2):
            told = await router.reload(TWO, port=1, host="127.0.0.9", state_file="other.json", queue_timeout_s=44)
            assert set(told["needs_restart"]) == {"port", "host", "state_file"}
        assert (await router.reload(TWO, queue_timeout_s=44))["needs_restart"] == []


async def test_reloads_that_are_asked_for_together_all_see_the_last_file(tmp_path: Path) -> None:
    async with reloaded(tmp_path, TWO) as router:
        answers = []
        for n in range(10):
            router.write(TWO, aliases={f"x{n}": "a"})
            answers.append(asyncio.ensure_future(router.try_reload()))
            await asyncio.sleep(0)
        assert {a.status for a in await asyncio.gather(*answers)} == {200}
        assert (await router.ask(chat("x9"))).status == 200
        assert (await router.ask(chat("x8"))).status == 404


async def test_metrics_of_engines_that_went_and_came_are_true(tmp_path: Path) -> None:
    async with reloaded(tmp_path, TWO) as router:
        await router.said("a")
        await router.reload({"b": child("b"), "c": child("c")})
        await router.said("c")
        text = (await router.get("/metrics")).body.decode()
        assert 'enginerouter_provider_healthy{provider="c"} 1' in text
        assert 'enginerouter_provider_healthy{provider="a"}' not in text
        assert 'enginerouter_engine_state{engine="c",phase="ready"} 1' in text
        names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
        assert len(names) == len(set(names)), "registered twice"
