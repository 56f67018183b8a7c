"""Health as users see it: background probes on real sockets, `/v1/health`, `provider_healthy`, `/admin/reset`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from engine_server import SSE_HEAD, FakeEngineServer, Script, chunked, usual
from http_servers import Provider, say
from router_kit import MakeRouter, RouterUnderTest, chat

from enginerouter.config.engines import Remote
from enginerouter.config.model import ApiKey, Health
from enginerouter.engines import watching as probing
from enginerouter.errors import StartFailed
from enginerouter.swap.phases import Phase

ROUND_S = 0.02
PROBING = Health(probe_interval_s=ROUND_S, probe_timeout_s=0.25)
FAILING = say({"error": {"message": "boom"}}, 500)


class Probed(Provider):
    """A provider that counts its probes. `probe_status` 0: it takes the question and never answers."""

    def __init__(self) -> None:
        super().__init__()
        self.probes = 0
        self.chats = 0
        self.probe_status = 200

    def _answer(self, received: Any) -> Script:
        if received.target == f"{self.base}/models":
            self.probes += 1
            if self.probe_status == 0:
                return [asyncio.Event()]
            return say({"data": []}, self.probe_status)
        self.chats += 1
        return super()._answer(received)

    async def probed(self, rounds: int = 3) -> None:
        """Until so many more probes have begun, and all but the last have been judged."""
        wanted = self.probes + rounds + 1
        async with asyncio.timeout(5):
            while self.probes < wanted:
                await asyncio.sleep(ROUND_S / 4)


@pytest.fixture
async def provider() -> AsyncIterator[Probed]:
    server = Probed()
    await server.listen()
    yield server
    await server.stop()


def cloud(server: FakeEngineServer, **more: Any) -> Remote:
    url = server.url  # type: ignore[attr-defined]
    return Remote(name="cloud", base_url=url, **{"api_key": "provider-key", "served_models": ("big",), **more})


async def health_of(router: RouterUnderTest, engine: str, **headers: str) -> dict[str, Any]:
    answer = await router.get("/v1/health", **headers)
    assert answer.status == 200
    found: dict[str, Any] = answer.json["providers"][engine]
    return found


async def becomes(router: RouterUnderTest, engine: str, status: str) -> dict[str, Any]:
    async with asyncio.timeout(5):
        while (seen := await health_of(router, engine))["status"] != status:
            await asyncio.sleep(ROUND_S)
    return seen


async def metric(router: RouterUnderTest, sample: str) -> str:
    lines = (await router.get("/metrics")).body.decode().splitlines()
    return next(line.removeprefix("enginerouter_" + sample).strip() for line in lines if sample in line)


def gets(server: FakeEngineServer, path: str = "/health") -> int:
    return sum(r.target == path for r in server.received)


async def test_everything_is_healthy_before_anything_has_happened(make_router: MakeRouter, provider: Probed) -> None:
    router = await make_router(http=[cloud(provider)])
    said = (await router.get("/v1/health")).json
    assert said["status"] == "healthy"
    assert list(said["providers"]) == ["a", "b", "cloud"]
    model = {
        "circuit": "closed",
        "opened_by": None,
        "consecutive_failures": 0,
        "last_error": None,
        "retry_after_s": None,
        "last_60_s": {"ok": 0, "failed": 0},
    }
    assert said["providers"]["a"] == {
        "status": "healthy",
        "type": "generic_process",
        "is_resident": False,
        "needs_operator": False,
        "consecutive_failures": 0,
        "last_error": None,
        "last_check_unix": None,
        "last_check": None,
        "unhealthy_until_unix": None,
        "probes": model,
        "models": {"a": model},
        "more_models": 0,
    }
    assert (await router.get("/status")).json["health"] == dict.fromkeys(("a", "b", "cloud"), "healthy")
    assert router.a.starts == router.b.starts == 0


# --- probes


async def test_a_provider_that_goes_down_is_seen_and_so_is_its_return(
    make_router: MakeRouter, provider: Probed, caplog: pytest.LogCaptureFixture
) -> None:
    router = await make_router((), http=[cloud(provider)], health=PROBING)
    await provider.probed()
    assert await metric(router, 'provider_healthy{provider="cloud"}') == "1"
    provider.probe_status = 503
    seen = await becomes(router, "cloud", "unhealthy")
    assert (seen["probes"]["circuit"], seen["probes"]["opened_by"]) == ("open", "probes")
    assert seen["last_error"] == "its probe saw: status 503"
    assert abs(seen["last_check_unix"] - time.time()) < 5
    assert 50 < seen["unhealthy_until_unix"] - time.time() <= 61
    assert await metric(router, 'provider_healthy{provider="cloud"}') == "0"
    await provider.probed()  # an open circuit does not stop them
    provider.probe_status = 200
    await becomes(router, "cloud", "healthy")
    assert await metric(router, 'health_transitions_total{provider="cloud",to="open"}') == "1"
    assert await metric(router, 'health_transitions_total{provider="cloud",to="closed"}') == "1"
    said = [(r.levelname, r.getMessage()) for r in caplog.records if r.name.endswith("health")]
    assert said == [
        ("WARNING", "health: cloud is passed over for 60 s: its probe saw: status 503"),
        ("INFO", "health: cloud is no longer passed over: it answers again"),
    ]


@pytest.mark.parametrize("status", [301, 401, 404, 429])
async def test_a_provider_that_answers_lives_whatever_it_says(
    make_router: MakeRouter, provider: Probed, status: int
) -> None:
    provider.probe_status = status
    router = await make_router((), http=[cloud(provider)], health=PROBING)
    await provider.probed(4)
    assert (await health_of(router, "cloud"))["status"] == "healthy"


async def test_a_probe_carries_our_key_and_our_headers(make_router: MakeRouter, provider: Probed) -> None:
    await make_router((), http=[cloud(provider, headers={"X-Title": "box"})], health=PROBING)
    probe = (await provider.exchange()).received
    assert (probe.method, probe.target) == ("GET", "/api/v1/models")
    assert (probe.header("Authorization"), probe.header("X-Title")) == ("Bearer provider-key", "box")


async def test_a_provider_without_its_key_is_not_asked(make_router: MakeRouter, provider: Probed) -> None:
    lacking = cloud(provider, api_key=None, api_key_env="NOT_SET", unconfigured=True)
    router = await make_router(http=[lacking], health=PROBING)
    await router.load("a")
    await router.until(lambda: gets(router.a.server) > 3)
    assert provider.connections == 0
    assert (await health_of(router, "cloud"))["status"] == "unconfigured"
    assert (await router.get("/v1/health")).json["status"] == "healthy"
    assert 'provider="cloud"' not in (await router.get("/metrics")).body.decode()


async def test_probes_that_are_green_never_close_what_calls_opened(make_router: MakeRouter, provider: Probed) -> None:
    router = await make_router((), http=[cloud(provider)], health=PROBING)
    for _ in range(2):
        call = router.router.health.admit("cloud", "big")
        assert call is not None
        call.failed("status 500")
    await provider.probed(5)
    seen = await health_of(router, "cloud")
    assert (seen["status"], seen["models"]["big"]["opened_by"]) == ("unhealthy", "calls")
    assert seen["probes"]["circuit"] == "closed"
    assert router.router.health.admit("cloud", "big") is None


async def test_an_engine_that_works_is_back_after_one_trial_though_its_probes_fail(
    make_router: MakeRouter, provider: Probed
) -> None:
    """The deadlock of old: an open circuit that nothing could close but what it kept away."""
    provider.probe_status = 503
    rules = Health(probe_interval_s=ROUND_S, open_s=0.2)
    router = await make_router((), http=[cloud(provider)], health=rules)
    health = router.router.health
    await becomes(router, "cloud", "unhealthy")
    assert health.admit("cloud", "big") is None
    await router.until(lambda: not health.state("cloud", "big").is_passed_over)
    waiting = [health.admit("cloud", "big") for _ in range(1000)]
    [trial] = [call for call in waiting if call is not None]
    assert trial.is_trial
    trial.succeeded()
    assert health.state("cloud", "big").state == "closed"


async def test_a_stopped_engine_is_never_asked_and_never_unhealthy(make_router: MakeRouter) -> None:
    router = await make_router(health=PROBING)
    await router.load("a")
    await router.until(lambda: gets(router.a.server) > 2)
    await router.load("b")
    asked = router.a.server.connections
    await router.until(lambda: gets(router.b.server) > 5)
    assert router.phase("a") is Phase.COLD
    assert router.a.server.connections == asked
    seen = await health_of(router, "a")
    assert (seen["status"], seen["is_resident"], seen["last_check_unix"]) == ("healthy", False, None)
    assert await metric(router, 'provider_healthy{provider="a"}') == "1"


async def test_what_probes_said_of_an_engine_ends_with_its_process(make_router: MakeRouter) -> None:
    router = await make_router(health=PROBING)
    await router.load("a")
    router.a.server.script = FAILING
    await becomes(router, "a", "unhealthy")
    await router.load("b")
    assert (await health_of(router, "a"))["status"] == "healthy"
    assert router.router.health.admit("a", "a") is not None


async def test_a_probe_wakes_no_engine_that_sleeps_and_keeps_none_awake(make_router: MakeRouter) -> None:
    router = await make_router({"a": {"idle_unload_s": 0.15}, "b": {}}, health=PROBING, together=(("a", "b"),))
    router.a.sleeps = True
    await router.load("b")
    await router.load("a")
    await router.until(lambda: router.phase("a") is Phase.COLD)
    asked, before = len(router.a.server.received), gets(router.b.server)
    await router.until(lambda: gets(router.b.server) > before + 5)
    assert len(router.a.server.received) == asked
    assert (router.phase("a"), router.a.starts) == (Phase.COLD, 1)


def hanging(received: Any) -> Script:
    """Nothing is ever answered."""
    return [asyncio.Event()]


async def test_a_late_probe_of_a_busy_engine_is_no_verdict(make_router: MakeRouter) -> None:
    rules = Health(probe_interval_s=ROUND_S, probe_timeout_s=0.05)
    router = await make_router(health=rules)
    await router.load("a")
    router.a.server.script = hanging
    async with router.client() as client:
        await client.send("POST", "/v1/chat/completions", chat())
        await router.until(lambda: router.in_flight == 1)
        before = gets(router.a.server)
        await router.until(lambda: gets(router.a.server) > before + 4)
        seen = await health_of(router, "a")
        assert seen["status"] == "healthy"
        assert seen["last_check"] == "no answer within 0.05 s"
    await router.idle()
    seen = await becomes(router, "a", "unhealthy")
    assert seen["last_error"] == "its probe saw: no answer within 0.05 s"


async def test_hanging_probes_hold_up_neither_the_others_nor_start_nor_stop(
    make_router: MakeRouter, provider: Probed
) -> None:
    provider.probe_status = 0
    patient = Health(probe_interval_s=ROUND_S, probe_timeout_s=600)
    began_at = time.monotonic()
    router = await make_router(http=[cloud(provider)], health=patient)
    assert (await router.ask(chat())).status == 200
    await provider.exchange()
    await router.stop()
    assert time.monotonic() - began_at < 3


async def test_probes_can_be_switched_off(make_router: MakeRouter, provider: Probed) -> None:
    router = await make_router(http=[cloud(provider)], health=Health(enabled=False, probe_interval_s=ROUND_S))
    await router.load("a")
    await asyncio.sleep(ROUND_S * 5)
    assert (provider.probes, gets(router.a.server)) == (0, 0)


async def test_one_probe_that_breaks_ends_no_other(
    make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    really = probing.is_alive

    def breaks(settings: Any, *said: Any, **more: Any) -> bool:
        if settings.name == "b":
            raise ZeroDivisionError
        return really(settings, *said, **more)

    monkeypatch.setattr(probing, "is_alive", breaks)
    router = await make_router(health=PROBING, together=(("a", "b"),))
    await router.load("b")
    await router.load("a")
    await router.until(lambda: gets(router.a.server) > 5)
    assert "the probe of b failed in an unexpected way" in caplog.text
    monkeypatch.undo()
    asked = gets(router.b.server)
    await router.until(lambda: gets(router.b.server) > asked + 2)  # the last broken round has been logged
    caplog.clear()


# --- requests


async def test_a_refused_key_is_unhealthy_and_asks_for_the_operator(make_router: MakeRouter, provider: Probed) -> None:
    """A second model that nobody has called must not hide it."""
    router = await make_router((), http=[cloud(provider, served_models=("big", "small"))])
    provider.answer = say({"error": {"message": "no such key"}}, 401)
    assert (await router.ask(chat("big"))).status >= 400
    seen = await health_of(router, "cloud")
    assert (seen["status"], seen["needs_operator"]) == ("unhealthy", True)
    assert await metric(router, 'provider_healthy{provider="cloud"}') == "0"
    assert await metric(router, 'provider_needs_operator{provider="cloud"}') == "1"
    provider.answer = None
    assert (await router.ask(chat("small"))).status == 200
    assert (await health_of(router, "cloud"))["status"] == "degraded", "a part of it is served"


async def test_names_that_clients_make_up_do_not_fill_what_is_shown(make_router: MakeRouter, provider: Probed) -> None:
    router = await make_router((), http=[cloud(provider)])
    provider.answer = FAILING
    for number in range(25):
        await router.ask(chat(f"cloud/made-{number}"))
    seen = await health_of(router, "cloud")
    assert (len(seen["models"]), seen["more_models"]) == (21, 5)
    assert "big" in seen["models"]


async def test_a_provider_whose_chats_fail_is_passed_over_though_its_probes_are_green(
    make_router: MakeRouter, provider: Probed
) -> None:
    """And a request that names it directly still reaches it, and brings it back."""
    chain = {"smart": {"chain": ("big", "a")}}
    router = await make_router(("a",), http=[cloud(provider)], health=PROBING, aliases=chain)
    provider.answer = FAILING
    for _ in range(4):
        said = await router.ask(chat("smart"))
        assert (said.status, said.header("X-EngineRouter-Resolved")) == (200, "a/a")
        await provider.probed()
    assert provider.chats == 2
    assert (await health_of(router, "cloud"))["models"]["big"]["opened_by"] == "calls"
    assert (await router.ask(chat("big"))).status == 500
    provider.answer = None
    assert (await router.ask(chat("big"))).status == 200
    assert (await health_of(router, "cloud"))["status"] == "healthy"
    assert (await router.ask(chat("smart"))).header("X-EngineRouter-Resolved") == "cloud/big"


async def test_of_many_requests_at_the_end_of_a_back_off_one_reaches_the_provider(
    make_router: MakeRouter, provider: Probed
) -> None:
    chain = {"smart": {"chain": ("big", "a")}}
    router = await make_router(("a",), http=[cloud(provider)], aliases=chain, health=Health(enabled=False, open_s=0.1))
    provider.answer = FAILING
    for _ in range(2):
        await router.ask(chat("smart"))
    router.router.health.configure(Health())  # the trial itself has its usual time
    goes_on = asyncio.Event()
    provider.answer = [goes_on, *usual("provider")(provider.received[0])]
    health = router.router.health
    await router.until(lambda: not health.state("cloud", "big").is_passed_over)
    async with asyncio.TaskGroup() as clients:
        asked = [clients.create_task(router.ask(chat("smart"), within_s=30)) for _ in range(200)]
        await router.until(lambda: sum(a.done() for a in asked) == 199, within_s=30)
        assert provider.chats == 3
        goes_on.set()
    served_by = [a.result().header("X-EngineRouter-Resolved") for a in asked]
    assert (served_by.count("a/a"), served_by.count("cloud/big")) == (199, 1)
    assert health.state("cloud", "big").state == "closed"


async def test_a_crash_under_several_requests_is_one_blip(make_router: MakeRouter) -> None:
    router = await make_router(("a",))
    await router.load("a")
    router.a.server.script = hanging
    async with asyncio.TaskGroup() as clients:
        asked = [clients.create_task(router.ask(chat())) for _ in range(5)]
        await router.until(lambda: len(router.a.server.received) == 6)
        await router.a.crash()
    assert {a.result().error["code"] for a in asked} == {"engine_crashed"}
    seen = await health_of(router, "a")
    assert (seen["models"]["a"]["circuit"], seen["models"]["a"]["consecutive_failures"]) == ("closed", 1)


async def test_what_the_caller_did_wrong_is_no_failure_of_the_engine(make_router: MakeRouter) -> None:
    router = await make_router(("a",))
    router.a.server.script = say({"error": {"message": "context too long"}}, 400)
    for _ in range(3):
        assert (await router.ask(chat())).status == 400
    seen = await health_of(router, "a")
    assert (seen["status"], seen["consecutive_failures"]) == ("healthy", 0)


async def test_failed_starts_are_their_own_circuits(make_router: MakeRouter) -> None:
    router = await make_router({"a": {"max_restarts": 9}})
    router.a.start_error = StartFailed("a", "engine 'a' has no model file")
    for _ in range(3):
        assert (await router.ask(chat())).error["code"] == "start_failed"
    assert (await health_of(router, "a"))["models"]["a"]["circuit"] == "closed"


async def test_reset_brings_back_every_target_of_a_chain(make_router: MakeRouter, provider: Probed) -> None:
    chain = {"smart": {"chain": ("big", "a")}}
    router = await make_router(("a",), http=[cloud(provider)], aliases=chain)
    await opened(router, ("a", "a"), ("cloud", "big"))
    assert (await router.ask(chat("smart"))).status == 503
    answer = await router.ask(b'{"model": "smart"}', path="/admin/reset")
    assert answer.json["circuits"] == ["cloud/big", "a/a"]
    assert (await router.ask(chat("smart"))).header("X-EngineRouter-Resolved") == "cloud/big"


# --- what may be known, and by whom


async def test_a_key_hears_nothing_of_what_it_may_not_use(make_router: MakeRouter, provider: Probed) -> None:
    keys = (
        ApiKey(name="boss", key="boss", admin=True),
        ApiKey(name="home", key="home", remote=False),
        ApiKey(name="b-only", key="b-only", models=("b",)),
    )
    router = await make_router(http=[cloud(provider)], api_keys=keys)
    for engine in ("a", "cloud"):
        for _ in range(2):
            call = router.router.health.admit(engine, "a" if engine == "a" else "big")
            assert call is not None
            call.failed("account 4711 is out of order")
    seen = {k: (await router.get("/v1/health", **{"X-API-Key": k})).json for k in ("boss", "home", "b-only")}
    assert list(seen["boss"]["providers"]) == ["a", "b", "cloud"]
    assert list(seen["home"]["providers"]) == ["a", "b"]
    assert list(seen["b-only"]["providers"]) == ["b"]
    assert "4711" in json.dumps(seen["boss"])
    assert "4711" not in json.dumps([seen["home"], seen["b-only"]])
    assert seen["b-only"]["status"] == "healthy"
    assert (await router.get("/status", **{"X-API-Key": "b-only"})).json["health"] == {"b": "healthy"}
    assert (await router.get("/v1/health")).status == 401


async def test_an_engine_that_may_not_be_started_is_unhealthy(make_router: MakeRouter) -> None:
    router = await make_router({"a": {"max_restarts": 1}})
    router.a.start_error = StartFailed("a", "engine 'a' has no model file")
    assert (await router.ask(chat())).status == 502
    assert (await health_of(router, "a"))["status"] == "unhealthy"
    assert await metric(router, 'provider_healthy{provider="a"}') == "0"
    assert (await router.ask(b'{"engine": "a"}', path="/admin/reset")).status == 200
    assert (await health_of(router, "a"))["status"] == "healthy"


async def test_names_that_clients_make_up_are_no_labels(make_router: MakeRouter, provider: Probed) -> None:
    router = await make_router((), http=[cloud(provider)])
    for _ in range(2):
        router.router.health.observe("cloud", 'x"} 1\nevil{x="').failed("status 500")
    text = (await router.get("/metrics")).body.decode()
    assert "evil" not in text
    assert 'enginerouter_health_transitions_total{provider="cloud",to="open"} 1' in text


async def test_an_engine_that_failed_and_was_then_stopped_is_not_called_unhealthy(make_router: MakeRouter) -> None:
    router = await make_router(("a", "b"))
    await router.load("a")
    await opened(router, ("a", "a"))
    assert (await health_of(router, "a"))["status"] == "unhealthy"
    await router.load("b")
    assert (await health_of(router, "a"))["status"] == "degraded"  # its circuit is open still
    assert await metric(router, 'provider_healthy{provider="a"}') == "0.5"


# --- an operator's word


async def opened(router: RouterUnderTest, *targets: tuple[str, str]) -> None:
    for engine, model in targets:
        for _ in range(2):
            router.router.health.observe(engine, model).failed("status 500")


@pytest.mark.parametrize(
    ("body", "closed"),
    [
        (b"{}", ["a/a", "a/qwen", "b/b"]),
        (b'{"engine": "a"}', ["a/a", "a/qwen"]),
        (b'{"model": "qwen"}', ["a/qwen"]),
        (b'{"model": "fast"}', ["a/qwen"]),
        (b'{"engine": "a", "model": "qwen"}', ["a/qwen"]),
        (b'{"model": "a/qwen"}', ["a/qwen"]),
    ],
)
async def test_reset_closes_the_circuits_of_what_is_named(
    make_router: MakeRouter, body: bytes, closed: list[str]
) -> None:
    models = [{"id": "a", "engine": "a"}, {"id": "qwen", "engine": "a"}, {"id": "b", "engine": "b"}]
    router = await make_router(models=models, aliases={"fast": "qwen"})
    await opened(router, ("a", "a"), ("a", "qwen"), ("b", "b"))
    answer = await router.ask(body, path="/admin/reset")
    assert (answer.status, answer.json["circuits"]) == (200, closed)
    for label in ("a/a", "a/qwen", "b/b"):
        engine, _, model = label.partition("/")
        assert router.router.health.state(engine, model).is_passed_over == (label not in closed)


async def test_reset_of_a_chain_at_one_engine_leaves_its_other_targets(
    make_router: MakeRouter, provider: Probed
) -> None:
    chain = {"smart": {"chain": ("a", "big")}}
    router = await make_router(("a", "b"), http=[cloud(provider)], aliases=chain)
    await opened(router, ("a", "a"), ("cloud", "big"))
    answer = await router.ask(b'{"model": "smart", "engine": "cloud"}', path="/admin/reset")
    assert answer.json == {"reset": ["cloud"], "circuits": ["cloud/big"]}
    for wrong in (b'{"model": "smart", "engine": "b"}', b'{"modle": "smart"}', b'{"model": 5}', b'{"engine": [1]}'):
        assert (await router.ask(wrong, path="/admin/reset")).status == 400, wrong
    assert (await health_of(router, "a"))["models"]["a"]["circuit"] == "open"


async def test_reset_lets_what_probes_opened_be_tried_at_once(make_router: MakeRouter, provider: Probed) -> None:
    provider.probe_status = 503
    router = await make_router((), http=[cloud(provider)], health=Health(probe_interval_s=0.3))
    await becomes(router, "cloud", "unhealthy")
    assert (await router.ask(b'{"engine": "cloud"}', path="/admin/reset")).json["circuits"] == ["cloud"]
    assert router.router.health.admit("cloud", "big") is not None


# --- requests that name their model, and errors that come with a status of success


ERROR = {"error": {"message": "the upstream is down", "code": 502}}
EVENT = b"data: " + json.dumps(ERROR).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("is_stream", "script"),
    [
        (False, say(ERROR)),
        (True, [SSE_HEAD, *chunked([EVENT])]),
        (True, [SSE_HEAD, *chunked([b": processing\n\n", b'data: {"choices":[{"delta":{"role":"x"}}]}\n\n', EVENT])]),
        (True, [SSE_HEAD, *chunked([EVENT[:9], EVENT[9:]])]),
    ],
    ids=["whole", "stream", "after a comment and a role", "in two pieces"],
)
async def test_an_error_under_a_status_of_success_closes_no_circuit(
    make_router: MakeRouter, provider: Probed, is_stream: bool, script: Script
) -> None:
    router = await make_router((), http=[cloud(provider)])
    provider.answer = script
    for _ in range(2):
        assert (await router.ask(chat("big", stream=is_stream))).status == 200
    assert (await health_of(router, "cloud"))["models"]["big"]["circuit"] == "open"
    provider.answer = None
    assert (await router.ask(chat("big", stream=is_stream))).status == 200
    assert (await health_of(router, "cloud"))["models"]["big"]["circuit"] == "closed"


async def test_a_failure_after_keepalives_have_begun_counts(make_router: MakeRouter, provider: Probed) -> None:
    early = {"first_byte_commit_s": 0.01, "swap_keepalive_interval_s": 0.01}
    router = await make_router((), http=[cloud(provider)], **early)
    for _ in range(2):
        goes_on = asyncio.Event()
        provider.answer = [goes_on, *FAILING]
        async with router.client() as client:
            await client.send("POST", "/v1/chat/completions", chat("big", stream=True))
            await client.head()
            await client.until(b":")
            goes_on.set()
            await client.rest()
    assert (await health_of(router, "cloud"))["models"]["big"]["circuit"] == "open"


@pytest.mark.parametrize("refusal", [(403, {}), (429, {"code": "insufficient_quota"})])
async def test_a_refusal_of_our_key_asks_for_the_operator_whoever_meets_it(
    make_router: MakeRouter, provider: Probed, refusal: tuple[int, dict[str, str]]
) -> None:
    status, more = refusal
    router = await make_router((), http=[cloud(provider)])
    provider.answer = say({"error": {"message": "no", **more}}, status)
    assert (await router.ask(chat("big"))).status == status
    assert (await health_of(router, "cloud"))["needs_operator"]
