"""`/events` and `/logs`: what a watcher sees, what a key may not see, and that nobody waits for a watcher."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from engine_server import ok
from router_kit import CHAT, GIB, Client, MakeRouter, RouterUnderTest, chat, make_config

from enginerouter.config.engines import Profile
from enginerouter.config.load import load_text
from enginerouter.config.model import ApiKey
from enginerouter.errors import StartFailed
from enginerouter.web import watching
from enginerouter.web.surface import journals, log_files
from enginerouter.web.telemetry import Record

KEYS = (ApiKey(name="boss", key="boss", admin=True), ApiKey(name="guest", key="guest", models=("a",)))


class Watcher:
    """One client of `/events`, event by event."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._left = b""

    async def next(self) -> tuple[str, dict[str, Any]]:
        while b"\n\n" not in self._left:
            piece = await self._client.piece()
            assert piece, "the stream has ended"
            self._left += piece
        frame, _, self._left = self._left.partition(b"\n\n")
        name, data = frame.decode().split("\n")
        return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))

    async def until(self, wanted: str, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
        """All events up to the first of that name with those fields."""
        seen = []
        while True:
            seen.append(await self.next())
            name, data = seen[-1]
            if name == wanted and fields.items() <= data.items():
                return seen


async def watch(client: Client, key: str | None = None) -> Watcher:
    headers = {"Authorization": f"Bearer {key}"} if key else None
    await client.send("GET", "/events", headers=headers)
    assert await client.head() == 200
    watcher = Watcher(client)
    assert (await watcher.next())[0] == "status"
    assert (await watcher.next())[0] == "memory_history"
    return watcher


async def test_a_swap_is_seen_phase_by_phase_then_as_a_whole_and_its_request_last(make_router: MakeRouter) -> None:
    router = await make_router()
    await router.load("b")
    async with router.client() as client:
        watcher = await watch(client)
        await router.load("a")
        seen = [e for e in await watcher.until("request", model="a") if e[0] != "status"]
    phases = [(data["slot"], data["after"]) for name, data in seen if name == "phase"]
    assert phases[0] == ("b", "draining")
    assert phases[-1] == ("a", "ready")
    assert ("b", "cold") in phases
    swap = next(data for name, data in seen if name == "swap" and data["target"] == "a")
    assert (swap["target"], swap["result"], swap["freed"]) == ("a", "ok", ["b"])
    _, request = seen[-1]
    assert (request["model"], request["target"], request["status"]) == ("a", "a/a", 200)
    assert request["total_ms"] >= request["queue_ms"] >= 0
    assert request["first_byte_ms"] is not None


async def test_who_comes_later_is_told_of_the_last_swaps_and_requests(make_router: MakeRouter) -> None:
    router = await make_router()
    await router.load("a")
    async with router.client() as client:
        seen = await (await watch(client)).until("request", model="a")
    assert [data["target"] for name, data in seen if name == "swap"] == ["a"]


async def test_why_a_swap_failed_is_told_to_admins(make_router: MakeRouter) -> None:
    """In the event, now and remembered, and in `/status`: an engine's words may name what another key must not know."""
    keys = (*KEYS, ApiKey(name="user", key="user"))
    router = await make_router(api_keys=keys)
    router.engines["a"].start_error = StartFailed("a", "engine 'a' exited with status 3: no such file /secret")
    assert (await router.ask(chat("a"), headers={"Authorization": "Bearer boss"})).status == 502
    for key, wanted in (("boss", "engine 'a' exited with status 3: no such file /secret"), ("user", None)):
        async with router.client() as client:
            _, swap = (await (await watch(client, key)).until("swap", target="a", result="failed"))[-1]
        assert swap.get("error") == wanted
        status = (await router.get("/status", Authorization=f"Bearer {key}")).json
        assert status["last_swaps"]["a"]["error"] == wanted


async def test_who_comes_later_is_told_how_much_memory_there_was(make_router: MakeRouter) -> None:
    """Of what was read without a watcher: here around a swap that takes a third of it."""
    router = await make_router(settles=True)
    router.engines["a"].held = 20 * GIB
    await router.load("a")
    await router.get("/status")
    async with router.client() as client:
        await client.send("GET", "/events")
        assert await client.head() == 200
        _, told = (await Watcher(client).until("memory_history"))[-1]
    assert abs(told["at"] - time.time()) < 5
    times, readings = zip(*told["points"], strict=True)
    assert list(times) == sorted(times)
    assert told["at"] - 5 < times[0] <= times[-1] <= told["at"] + 0.1
    assert (readings[0], readings[-1]) == (64 * GIB, 44 * GIB)


async def test_a_key_sees_only_what_it_may_use(make_router: MakeRouter) -> None:
    router = await make_router(api_keys=KEYS)
    headers = {"Authorization": "Bearer boss"}
    async with router.client() as client, router.client() as other:
        guest, boss = await watch(client, "guest"), await watch(other, "boss")
        for model in ("b", "a"):
            assert (await router.ask(chat(model), headers=headers)).status == 200
        seen = await guest.until("request", model="a")
        assert "request" in {name for name, data in await boss.until("request", model="b")}
    told = json.dumps([e for e in seen if e[0] != "status"])
    assert '"b"' not in told
    assert '"b/b"' not in told
    states = [data for name, data in seen if name == "status"]
    assert all({s["slot"] for s in data["slots"]} == {"a"} for data in states)


async def test_events_need_a_key_and_logs_an_admin_key(make_router: MakeRouter, tmp_path: Path) -> None:
    router = await make_router(api_keys=KEYS, log_file=tmp_path / "router.log")
    assert (await router.get("/events")).status == 401
    assert (await router.get("/logs", Authorization="Bearer guest")).status == 403
    assert (await router.get("/logs", Authorization="Bearer boss")).status == 200


async def test_the_state_comes_again_by_itself(make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "SNAPSHOT_EVERY_S", 0.01)
    router = await make_router()
    async with router.client() as client:
        watcher = await watch(client)
        first = (await watcher.next())[1]["uptime_s"]
        while (await watcher.next())[1]["uptime_s"] == first:
            pass


async def test_an_open_watcher_does_not_hold_up_the_end_and_hears_of_it(make_router: MakeRouter) -> None:
    router = await make_router(shutdown_timeout_s=60.0)
    async with router.client() as client:
        watcher = await watch(client)
        async with asyncio.timeout(5):
            await router.stop()
        await watcher.until("end")
        assert await client.rest() == (b"", True)


async def test_a_watcher_that_does_not_read_loses_events_and_holds_nobody_up(
    make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enginerouter.web.hub.KEPT", 5)
    router = await make_router()
    router.engines["a"].server.script = ok(b"{}")
    await router.load("a")
    async with router.client() as client:
        watcher = await watch(client)
        # In one turn of the loop the watcher cannot keep up with more than it may keep.
        telemetry = router.router.telemetry
        for _ in range(9):
            telemetry.ended(Record("openai", "x", 0.0))
        seen = await watcher.until("lost")
    assert seen[-1][1] == {"count": 4}


async def test_too_many_watchers_are_refused(make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "MAX_WATCHERS", 1)
    router = await make_router()
    async with router.client() as client:
        await watch(client)
        answer = await router.get("/events")
        assert (answer.status, answer.error["code"]) == (429, "too_many_watchers")
    await router.until(lambda: len(router.router.telemetry.hub) == 0)


# --- logs


async def logs(router: RouterUnderTest, query: str = "") -> bytes:
    answer = await router.get(f"/logs{query}")
    assert answer.status == 200, answer.body
    return answer.body


async def test_the_last_lines_of_the_routers_log(make_router: MakeRouter, tmp_path: Path) -> None:
    file = tmp_path / "router.log"
    router = await make_router(log_file=file)
    assert await logs(router) == b"", "not written yet"
    file.write_text("".join(f"line {i} <b>\n" for i in range(200)))
    assert (await logs(router, "?lines=2")) == b"line 198 <b>\nline 199 <b>\n"
    assert (await logs(router)).count(b"\n") == 100
    answer = await router.get("/logs")
    assert answer.header("content-type") == "text/plain; charset=utf-8"
    assert answer.header("x-content-type-options") == "nosniff"


async def test_an_engines_log_is_followed_over_truncation_and_exchange(
    make_router: MakeRouter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "LOOK_EVERY_S", 0.005)
    router = await make_router()
    file = tmp_path / "logs/engines/a.log"
    file.parent.mkdir(parents=True)
    file.write_text("old\nloading\n")
    async with router.client() as client:
        await client.send("GET", "/logs?engine=a&lines=1&follow=1")
        assert await client.head() == 200
        assert await client.until(b"\n") == b"loading\n"
        with file.open("a") as engine:
            engine.write("ready\n")
        assert await client.until(b"\n") == b"ready\n"
        file.write_text("new\n")
        assert await client.until(b"\n") == b"new\n"
        file.rename(file.with_suffix(".1"))
        file.write_text("another file\n")
        assert await client.until(b"\n") == b"another file\n"
        async with asyncio.timeout(5):
            await router.stop()
        assert await client.rest() == (b"", True)


async def test_a_log_that_is_followed_goes_on_in_that_of_the_next_profile(
    make_router: MakeRouter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "LOOK_EVERY_S", 0.005)
    profiles = {name: Profile(id=name, model=Path(name)) for name in ("p", "q")}
    engines = {"a": {"profiles": profiles}}
    router = await make_router(engines)
    first, second = log_files(make_config(tmp_path, engines))["a"]
    first.parent.mkdir(parents=True, exist_ok=True)
    first.write_text("of p\n")
    async with router.client() as client:
        await client.send("GET", "/logs?engine=a&follow=1")
        assert await client.head() == 200
        assert await client.until(b"\n") == b"of p\n"
        second.write_text("of q\n")
        assert await client.until(b"q\n") == f"==> {second.name} <==\nof q\n".encode()


async def test_head_watches_nothing_and_followers_are_limited(
    make_router: MakeRouter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "MAX_WATCHERS", 1)
    router = await make_router(log_file=tmp_path / "router.log")
    for path in ("/events", "/logs?follow=1"):
        async with router.client() as client, asyncio.timeout(5):
            await client.send("HEAD", path)
            assert await client.head() == 200
            await router.until(lambda: len(router.router.telemetry.hub) == 0)
    async with router.client() as client:
        await client.send("GET", "/logs?follow=1")
        assert await client.head() == 200
        answer = await router.get("/logs?follow=1")
        assert (answer.status, answer.error["code"]) == (429, "too_many_watchers")
        assert (await router.get("/logs")).status == 200


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ("?engine=aa", 404, "did you mean 'a'?"),
        ("", 404, "log_file is null"),
        ("?engine=a&lines=many", 400, "whole number"),
        ("?engine=a&lines=99999", 400, "up to 10000"),
        ("?engine=a&lines=%C2%B2", 400, "whole number"),
        (f"?engine=a&lines={'9' * 5000}", 400, "whole number"),
        ("?tail=3", 400, "there are: engine, lines, follow"),
    ],
)
async def test_what_there_is_no_log_of_is_said(make_router: MakeRouter, query: str, status: int, said: str) -> None:
    router = await make_router()
    answer = await router.get(f"/logs{query}")
    assert answer.status == status
    assert said in answer.error["message"]


def test_what_systemd_runs_prints_into_its_journal() -> None:
    text = """
engines:
  own: {type: systemd_unit, unit: heavy, base_url: 'http://127.0.0.1:1'}
  root: {type: systemd_unit, unit: big, scope: system, base_url: 'http://127.0.0.1:2'}
  daemon: {type: ollama, base_url: 'http://127.0.0.1:3'}
"""
    config = load_text(text, base_dir=Path("/base"), environ={}).config
    assert journals(config) == {"own": "journalctl --user-unit=heavy", "root": "journalctl --unit=big"}


async def test_watching_does_not_count_as_inference(make_router: MakeRouter) -> None:
    router = await make_router()
    async with router.client() as client:
        watcher = await watch(client)
        assert (await router.ask(chat("nope"), path=CHAT)).status == 404
        _, request = (await watcher.until("request"))[-1]
    assert (request["model"], request["target"], request["error"]) == ("nope", "", "model_not_found")
