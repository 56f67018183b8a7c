"""The configuration read again while the router runs: only the difference is applied, and nothing in flight is cut."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import ssl
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from http_servers import OllamaDaemon
from reload_kit import SETTINGS, from_file, process
from router_kit import Answer, Client, chat
from router_process import SRC
from test_tls import certificate, needs_openssl


async def test_an_unchanged_engine_keeps_its_process_over_reloads(tmp_path: Path):
    async with from_file(tmp_path, {"a": process("one"), "b": process()}) as router:
        before = await router.said_by("a")
        assert (await router.rewrite())["changes"] == {}
        said = await router.rewrite(
            {"a": process("one", start_timeout_s=99, pin=True), "b": process("other"), "c": process()},
            swap_max_wait_s=3.0,
            models=[{"id": "m", "engine": "a"}],
        )
        assert said["changes"]["added"] == ["c"]
        assert said["changes"]["changed"] == ["b"]
        assert set(said["changes"]["live"]) == {
            "swap_max_wait_s",
            "models",
            "engines.a.start_timeout_s",
            "engines.a.pin",
        }
        assert await router.said_by("m") == before
        assert (await router.slots())["a"]["is_pinned"]


async def test_a_changed_engine_ends_its_streams_and_then_starts_anew_for_those_who_wait(tmp_path: Path):
    async with from_file(tmp_path, {"a": process("old")}) as router:
        old, _ = await router.said_by("a")
        end = tmp_path / "end"
        async with router.stream("a", end) as client:
            await router.rewrite({"a": process("new")})
            waiting = asyncio.create_task(router.said_by("a"))
            await client.until(b"old")
            slot = (await router.slots())["a"]
            assert slot["is_outdated"]
            assert slot["in_flight"] == 1
            assert not waiting.done()
            end.touch()
            body, is_whole = await client.rest()
            assert is_whole
            assert body.endswith(b"data: [DONE]\n\n")
        new, tag = await waiting
        assert tag == "new"
        assert new != old
        assert not psutil.pid_exists(old)
        assert not (await router.slots())["a"]["is_outdated"]


async def test_a_changed_engine_that_is_idle_is_stopped_and_starts_at_its_next_need(tmp_path: Path):
    async with from_file(tmp_path, {"a": process("old")}) as router:
        old, _ = await router.said_by("a")
        await router.rewrite({"a": process("new", env={"X": "1"})})
        await router.until(lambda: not psutil.pid_exists(old))
        assert (await router.slots())["a"]["phase"] in ("freeing", "settling", "cold")
        assert (await router.said_by("a"))[1] == "new"


async def test_a_change_taken_back_while_it_drains_cuts_nobody(tmp_path: Path):
    async with from_file(tmp_path, {"a": process("old")}) as router:
        end = tmp_path / "end"
        async with router.stream("a", end) as client:
            await router.rewrite({"a": process("new")})
            await router.rewrite({"a": process("old")})
            await router.rewrite({"b": process()})
            await router.rewrite({"a": process("last")})
            waiting = asyncio.create_task(router.said_by("a"))
            await client.until(b"old")
            end.touch()
            assert (await client.rest())[1]
        assert (await waiting)[1] == "last"


async def test_a_removed_engine_ends_its_streams_and_is_stopped(tmp_path: Path):
    async with from_file(tmp_path, {"a": process(), "b": process()}) as router:
        pid, _ = await router.said_by("a")
        end = tmp_path / "end"
        async with router.stream("a", end) as client:
            said = await router.rewrite({"b": process()})
            assert said["changes"]["removed"] == ["a"]
            assert (await router.ask(chat("a"))).status == 404
            await client.until(b"data: {")
            assert psutil.pid_exists(pid)
            end.touch()
            assert (await client.rest())[1]
        await router.until_gone("a")
        assert not psutil.pid_exists(pid)
        assert (await router.said_by("b"))[0]


async def test_who_waits_is_served_by_what_its_name_means_after_a_reload(tmp_path: Path):
    engines = {"a": process(), "b": process()}
    async with from_file(tmp_path, engines, swap_max_wait_s=60.0, aliases={"mine": "b"}) as router:
        end = tmp_path / "end"
        async with router.stream("a", end) as client:
            waiting = asyncio.create_task(router.ask(chat("mine")))
            await router.until(lambda: router.router.coordinator.queued == 1)
            await router.rewrite({"a": process()}, swap_max_wait_s=60.0, aliases={"mine": "a"})
            answer = await waiting
            assert (answer.status, answer.header("x-enginerouter-resolved")) == (200, "a/a")
            end.touch()
            await client.rest()


async def test_who_waits_for_an_engine_that_is_taken_away_is_told_so(tmp_path: Path):
    async with from_file(tmp_path, {"a": process(), "b": process()}, swap_max_wait_s=60.0) as router:
        end = tmp_path / "end"
        async with router.stream("a", end) as client:
            waiting = asyncio.create_task(router.ask(chat("b")))
            await router.until(lambda: router.router.coordinator.queued == 1)
            await router.rewrite({"a": process()})
            answer = await waiting
            assert answer.status == 503
            assert answer.error["code"] == "no_longer_configured"
            assert "reloaded without it" in answer.error["message"]
            end.touch()
            assert (await client.rest())[1]


async def test_keys_hosts_and_limits_change_at_once(tmp_path: Path):
    async with from_file(tmp_path, {"a": process()}) as router:
        await router.said_by("a")
        await router.rewrite(api_keys=["secret"], max_body_mib=1, metrics_require_key=True)
        assert (await router.ask(chat("a"))).status == 401
        assert (await router.get("/metrics")).status == 401
        key = {"Authorization": "Bearer secret"}
        assert (await router.ask(chat("a"), headers=key)).status == 200
        assert (await router.ask(b"x" * 1_100_000, headers=key)).status == 413
        router.write(api_keys=["other"])
        assert (await router.reload(**key)).status == 200
        assert (await router.ask(chat("a"), headers=key)).status == 401


async def test_aliases_and_models_change_at_once(tmp_path: Path):
    engines = {"a": process("a"), "b": process("b")}
    async with from_file(tmp_path, engines, aliases={"best": "a"}) as router:
        assert (await router.said_by("best"))[1] == "a"
        await router.rewrite(aliases={"best": "b", "more": "a"})
        assert (await router.said_by("best"))[1] == "b"
        assert "more" in (await router.get("/v1/models")).body.decode()


async def test_the_key_of_an_engine_changes_at_once(tmp_path: Path):
    async with from_file(tmp_path, {"a": process(api_key="one")}) as router:
        first = (await router.ask(chat("a"))).json
        await router.rewrite({"a": process(api_key="two", headers={"X-More": "1"})})
        second = (await router.ask(chat("a"))).json
        assert (first["key"], second["key"]) == ("Bearer one", "Bearer two")
        assert first["choices"] == second["choices"]  # the same process


async def test_limits_of_a_running_engine_change_at_once(tmp_path: Path):
    async with from_file(tmp_path, {"a": process(max_in_flight=1)}) as router:
        end = tmp_path / "end"
        async with router.stream("a", end) as client:
            waiting = asyncio.create_task(router.said_by("a"))
            await router.until(lambda: router.router.coordinator.queued == 1)
            await router.rewrite({"a": process(max_in_flight=2)})
            await waiting
            end.touch()
            assert (await client.rest())[1]


async def test_a_new_profile_leaves_the_running_one_alone_and_a_changed_one_starts_anew(tmp_path: Path):
    for name in ("x", "y"):
        (tmp_path / name).touch()
    engine = process("{model}", manifest="profiles.yaml")
    manifest = tmp_path / "profiles.yaml"
    manifest.write_text(json.dumps({"p": {"model": "x"}}))
    async with from_file(tmp_path, {"a": engine}) as router:
        before = await router.said_by("p")
        manifest.write_text(json.dumps({"p": {"model": "x", "name": "P"}, "q": {"model": "x"}}))
        said = (await router.rewrite())["changes"]
        assert said == {"live": ["engines.a.profiles"]}
        assert await router.said_by("p") == before
        manifest.write_text(json.dumps({"p": {"model": "y"}, "q": {"model": "x"}}))
        assert (await router.rewrite())["changes"]["changed_profiles"] == [["a", "p"]]
        assert (await router.said_by("p"))[1].endswith("/y")
        manifest.write_text(json.dumps({"q": {"model": "x"}}))
        assert (await router.rewrite())["changes"]["removed_profiles"] == [["a", "p"]]
        await router.until_gone("a/p")
        assert (await router.ask(chat("p"))).status == 404
        assert (await router.said_by("q"))[1].endswith("/x")


async def test_an_engine_that_is_being_started_as_it_was_is_started_as_it_is_now(tmp_path: Path):
    never = process() | {"start_cmd": ["sleep", "60"], "base_url": "http://127.0.0.1:9"}
    async with from_file(tmp_path, {"a": never}) as router:
        waiting = asyncio.create_task(router.said_by("a"))
        await router.until(lambda: any(s.phase.value == "starting" for s in router.router.coordinator.slots.values()))
        await router.rewrite({"a": process("works")})
        assert (await waiting)[1] == "works"


async def test_a_new_engine_with_preload_is_started(tmp_path: Path):
    async with from_file(tmp_path, {"a": process()}) as router:
        await router.rewrite({"a": process(), "b": process(preload=True, holds_memory=False)})
        async with asyncio.timeout(5):
            while (await router.slots())["b"]["phase"] != "ready":
                await asyncio.sleep(0.01)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
WRONG = {
    "half": '{"engines": {"a": {"type": "gener',
    "a bomb": BOMB,
    "misspelt": "engnes: {}\nport: soon\n",
    "a cycle": "aliases: {x: {chain: [y]}, y: {chain: [x]}}",
    "no text": b"\xff\xfe\x00",
    "no mapping": "- a\n",
    "a manifest that is not there": (
        "engines: {a: {type: generic_process, start_cmd: [x, '{model}', '{port}'], manifest: none.yaml}}"
    ),
    "certificates that are none": (
        "engines: {a: {type: generic_process, start_cmd: [x]}}\ntls_cert_file: config.yaml\ntls_key_file: config.yaml\n"
    ),
    "a card that is not there": "engines: {a: {type: generic_process, start_cmd: [x]}}\nmemory_source: amd\n",
    "nothing, as an editor leaves it for a moment": "",
    "cut off after a key": "port: 0\nlog_level: INFO\n",
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_file_with_anything_wrong_changes_nothing_and_is_told(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async with from_file(tmp_path, {"a": process("good")}, api_keys=["k"]) as router:
        key = {"Authorization": "Bearer k"}
        before = await router.said_by("a", **key)
        wrong = WRONG[name]
        router.path.write_bytes(wrong if isinstance(wrong, bytes) else wrong.encode())
        answer = await router.reload(**key)
        assert answer.status == 422
        assert answer.error["code"] == "configuration_refused"
        problems = answer.error["problems"]
        assert problems
        assert all(p["message"] and p["file"] for p in problems)
        assert (await router.status(**key))["reload"]["problems"] == problems
        for problem in problems:
            assert problem["text"] in caplog.text
        assert await router.said_by("a", **key) == before
        router.write({"a": process("good")}, api_keys=["k"])
        assert (await router.reload(**key)).status == 200
        assert (await router.status(**key))["reload"]["problems"] == []
        assert await router.said_by("a", **key) == before


async def test_a_file_that_is_missing_or_unreadable_changes_nothing(tmp_path: Path):
    async with from_file(tmp_path, {"a": process()}) as router:
        before = await router.said_by("a")
        router.path.unlink()
        answer = await router.reload()
        assert answer.status == 422
        assert "no such file" in answer.error["message"]
        router.path.mkdir()
        answer = await router.reload()
        assert "a folder" in answer.error["message"]
        router.path.rmdir()
        os.mkfifo(router.path)  # nobody ever writes into it
        answer = await router.reload()
        assert "a pipe" in answer.error["message"]
        assert await router.said_by("a") == before


@pytest.mark.parametrize("what", ["manifest", "key_file", "tls_cert_file"])
async def test_a_file_beside_it_that_is_a_pipe_holds_no_reload_up(tmp_path: Path, what: str):
    """Nobody ever writes into it."""
    async with from_file(tmp_path, {"a": process()}) as router:
        before = await router.said_by("a")
        os.mkfifo(pipe := tmp_path / "pipe")
        if what == "manifest":
            profiled = {"type": "generic_process", "start_cmd": ["x", "{model}", "{flags}", "{port}"], what: str(pipe)}
            router.write({"a": process(), "b": profiled})
        elif what == "key_file":
            router.write(api_keys=[{"name": "k", what: str(pipe)}])
        else:
            router.write(tls_cert_file=str(pipe), tls_key_file=str(pipe))
        async with asyncio.timeout(10):
            answer = await router.reload()
        assert answer.status == 422
        assert "a pipe or a device, not a file" in answer.error["message"]
        assert await router.said_by("a") == before


async def test_what_is_wrong_with_the_file_is_for_admins(tmp_path: Path):
    keys: list[Any] = ["boss", {"name": "guest", "key": "g"}]
    async with from_file(tmp_path, {"a": process()}, api_keys=keys) as router:
        guest = {"Authorization": "Bearer g"}
        assert (await router.reload(**guest)).status == 403
        router.path.write_text("engnes: {}")
        assert (await router.reload(Authorization="Bearer boss")).status == 422
        assert (await router.status(**guest))["reload"].keys() == {"at", "reloaded"}


async def test_keys_that_need_a_restart_are_named_and_keep_their_value(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async with from_file(tmp_path, {"a": process()}) as router:
        said = await router.rewrite(port=1, host="0.0.0.0", state_file="other.json", api_keys=["k"])
        assert said["needs_restart"] == ["host", "port", "state_file"]
        assert "restart the router for these to count: host, port, state_file" in caplog.text
        again = await router.reload(Authorization="Bearer k")
        assert again.json["needs_restart"] == ["host", "port", "state_file"]


async def test_the_level_of_the_log_changes_at_once(tmp_path: Path):
    before = logging.getLogger().level
    try:
        async with from_file(tmp_path, {"a": process()}) as router:
            await router.rewrite(log_level="ERROR")
            assert logging.getLogger().level == logging.ERROR
    finally:
        logging.getLogger().setLevel(before)


async def test_reloads_that_are_asked_for_at_once_are_one_or_two(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "enginerouter")
    async with from_file(tmp_path, {"a": process()}) as router:
        answers = await asyncio.gather(*(router.reload() for _ in range(20)))
        assert {a.status for a in answers} == {200}
        assert 1 <= caplog.text.count("the configuration was reloaded") <= 5


async def test_figures_of_removed_and_changed_slots_are_forgotten(tmp_path: Path):
    async with from_file(tmp_path, {"a": process(), "b": process(), "c": process()}) as router:
        for model in "abc":
            await router.said_by(model)
        assert router.router.state.get("learned").keys() == {"a", "b", "c"}
        await router.rewrite({"a": process(), "b": process("changed")})
        await router.until(lambda: router.router.state.get("learned").keys() == {"a"})


async def test_a_remote_engine_that_moves_is_reached_elsewhere_at_once_and_cuts_no_stream(tmp_path: Path):
    def remote(url: str) -> dict[str, Any]:
        return {"type": "remote", "base_url": url, "trust_local": True}

    local = {"one": process("one", holds_memory=False), "two": process("two", holds_memory=False)}
    async with from_file(tmp_path, local) as boxes:
        await boxes.said_by("one")
        await boxes.said_by("two")
        one, two = (boxes.router._lasting.addresses[s] for s in boxes.router.coordinator.slots)
        folder = tmp_path / "router"
        folder.mkdir()
        async with from_file(folder, {"cloud": remote(one)}) as router:
            end = tmp_path / "end"
            async with router.stream("cloud", end) as client:
                assert (await router.rewrite({"cloud": remote(two)}))["changes"]["moved"] == ["cloud"]
                assert (await router.said_by("cloud"))[1] == "two"
                await client.until(b"one")
                end.touch()
                assert (await client.rest())[1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_a_file_without_permission_changes_nothing(tmp_path: Path):
    async with from_file(tmp_path, {"a": process()}) as router:
        router.path.chmod(0)
        answer = await router.reload()
        assert answer.status == 422
        assert "cannot be read" in answer.error["message"]


# --- a real process


async def test_sighup_has_a_real_router_read_its_file_again(tmp_path: Path):
    path = tmp_path / "config.yaml"
    settings = {**SETTINGS, "engines": {"a": process("a")}}
    path.write_text(json.dumps(settings))
    router = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "enginerouter",
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(SRC)}, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert router.stderr is not None

    async def says(text: str) -> str:
        async with asyncio.timeout(15):
            while text not in (line := (await router.stderr.readline()).decode()):  # type: ignore[union-attr]
                assert line, f"it ended before it said {text!r}"
        return line

    try:
        port = int((await says("listening on")).split("127.0.0.1:")[1].split(",")[0])

        async def answer_of(model: str) -> Answer:
            client = Client(*await asyncio.open_connection("127.0.0.1", port))
            await client.send("POST", "/v1/chat/completions", chat(model))
            answer = await client.answer(10)
            await client.close()
            return answer

        first = await answer_of("a")
        path.write_text(json.dumps({**settings, "aliases": {"b": "a"}}))
        router.send_signal(signal.SIGHUP)
        assert "other keys: aliases" in await says("the configuration was reloaded")
        assert (await answer_of("b")).text == first.text
        path.write_text('{"engines": {"a": ')
        router.send_signal(signal.SIGHUP)
        await says("the configuration was not reloaded, the running one goes on")
        assert str(path) in await says("not valid YAML")
        assert (await answer_of("b")).text == first.text
        path.write_text(json.dumps({**settings, "on_exit": "stop", "shutdown_timeout_s": 0.1}))
        router.send_signal(signal.SIGHUP)
        await says("the configuration was reloaded")
        router.send_signal(signal.SIGTERM)
        await says("stopping: running answers have 0.1 s")
        async with asyncio.timeout(10):
            assert await router.wait() == 0
    finally:
        if router.returncode is None:
            router.kill()
        await router.stderr.read()
        await router.wait()


@needs_openssl
async def test_a_reload_reads_the_certificate_again(tmp_path: Path):
    async def shown(port: int) -> bytes:
        blind = ssl.create_default_context()
        blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=blind)
        found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return found

    cert, key = certificate(tmp_path)
    async with from_file(tmp_path, {}, tls_cert_file=cert, tls_key_file=key) as router:
        first = await shown(router.port)
        certificate(tmp_path)
        assert not (await router.router.reloader.reload()).problems
        second = await shown(router.port)
        assert second != first
        Path(cert).write_text("none")
        assert "cannot be used" in str((await router.router.reloader.reload()).problems[0])
        assert await shown(router.port) == second
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        cert, key = certificate(elsewhere)
        router.write(tls_cert_file=cert, tls_key_file=key)
        done = await router.router.reloader.reload()
        assert (done.problems, done.changes.restart) == ((), ("tls_cert_file", "tls_key_file"))
        assert await shown(router.port) == second


# --- engines that are servers


def ollama(server: OllamaDaemon, **more: Any) -> dict[str, Any]:
    return {"type": "ollama", "base_url": server.url, "systemd_unit": None, **more}


async def test_a_new_server_with_something_in_memory_is_taken_over_and_freed_for_others(
    tmp_path: Path, daemon: OllamaDaemon
):
    daemon.running = ["phi:3b"]
    async with from_file(tmp_path, {"a": process()}) as router:
        await router.rewrite({"a": process(), "daemon": ollama(daemon)})
        assert (await router.slots())["daemon"]["phase"] == "ready"
        await router.said_by("a")
        assert daemon.running == []


async def test_what_a_server_said_of_its_models_is_known_after_a_reload(tmp_path: Path, daemon: OllamaDaemon):
    async with from_file(tmp_path, {"daemon": ollama(daemon, tags_cache_ttl_s=1000)}) as router:
        assert (await router.ask(chat("phi:3b"))).status == 200
        asked = len(daemon.called("GET /api/tags"))
        await router.rewrite({"daemon": ollama(daemon, tags_cache_ttl_s=999)}, aliases={"small": "phi:3b"})
        assert (await router.ask(chat("phi:3b"))).status == 200
        assert (await router.ask(chat("small"))).status == 200
        assert len(daemon.called("GET /api/tags")) == asked


async def test_a_server_that_moves_is_freed_where_it_was(tmp_path: Path, daemon: OllamaDaemon):
    other = OllamaDaemon()
    await other.listen()
    async with from_file(tmp_path, {"daemon": ollama(daemon)}) as router:
        assert (await router.ask(chat("phi:3b"))).status == 200
        assert daemon.running == ["phi:3b"]
        assert (await router.rewrite({"daemon": ollama(other)}))["changes"]["changed"] == ["daemon"]
        assert (await router.ask(chat("phi:3b"))).status == 200
        assert (daemon.running, other.running) == ([], ["phi:3b"])
    await other.stop()
