"""This box, then a cloud, then a small always-on box: a real llama-server first, scripted servers after it."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from real_kit import HELLO, RealRouter, Start, assert_said_by, kill_hard, llama, pieces, said, until

from e2e.engine_server import RST, SSE_HEAD, FakeEngineServer, Script, chunk, event, ok, usual

pytestmark = pytest.mark.real
BOTH = pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])


class Elsewhere:
    """Scripted servers in a thread: the tests here wait for real processes."""

    def __init__(self, *names: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.servers = {name: FakeEngineServer(name) for name in names}
        for server in self.servers.values():
            self._do(server.listen())

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def asked(self, name: str) -> int:
        return len(self.servers[name].received)

    def says(self, name: str, script: Script | None) -> None:
        self.servers[name].script = script if script is not None else usual(name)

    def leave(self, name: str) -> None:
        """Nobody listens there any more."""
        self._do(self.servers[name].stop())

    def engines(self) -> dict[str, Any]:
        return {
            name: {"type": "remote", "base_url": f"http://127.0.0.1:{server.port}", "served_models": [f"{name}-model"]}
            for name, server in self.servers.items()
        }

    def end(self) -> None:
        for name in self.servers:
            self.leave(name)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture
def far() -> Iterator[Elsewhere]:
    servers = Elsewhere("cloud", "lxc")
    yield servers
    servers.end()


Chained = Callable[..., RealRouter]


@pytest.fixture
def chained(start: Start, far: Elsewhere) -> Chained:
    """A router with the alias `best` over a llama-server called red, the cloud and the small box."""

    def make(*flags: str, **alias: Any) -> RealRouter:
        best = {"chain": ["red", "cloud/cloud-model", "lxc/lxc-model"], **alias}
        health = {"enabled": False}
        return start({"red": llama("red", *flags), **far.engines()}, aliases={"best": best}, health=health)

    return make


def ask(router: RealRouter, is_stream: bool, *, words: int = 3) -> tuple[str, str, str]:
    """What `best` says, who said it, and after how many tries, through the official client."""
    with router.client() as client:
        raw = client.chat.completions.with_raw_response.create(
            model="best", messages=HELLO, max_tokens=words, stream=is_stream
        )
        answer: Any = raw.parse()
        text = "".join(pieces(answer)) if is_stream else said(answer)
    return text, raw.headers["X-EngineRouter-Resolved"], raw.headers["X-EngineRouter-Attempts"]


@BOTH
def test_this_box_serves_while_it_can(chained: Chained, far: Elsewhere, is_stream: bool) -> None:
    text, who, tries = ask(chained(), is_stream)
    assert_said_by("red", text)
    assert (who, tries) == ("red/red", "1")
    assert far.asked("cloud") == far.asked("lxc") == 0


@BOTH
def test_killed_before_its_answer_the_cloud_answers_and_it_is_started_again(
    chained: Chained, far: Elsewhere, is_stream: bool
) -> None:
    router = chained()
    router.ask("red")
    red = router.engine("red")
    red.send_signal(signal.SIGSTOP)  # so that it cannot answer before it dies
    found: list[tuple[str, str, str]] = []
    asking = threading.Thread(target=lambda: found.append(ask(router, is_stream)))
    asking.start()
    until(lambda: router.slot("red")["in_flight"] == 1, "the request is at the engine")
    kill_hard(red)
    asking.join(20)
    assert found == [("cloud serves cloud-model", "cloud/cloud-model", "2")]
    text, who, _ = ask(router, is_stream)
    assert_said_by("red", text)
    assert who == "red/red"
    assert (
        router.metric('fallback_total{from_model="red/red",to_model="cloud/cloud-model",reason="engine_crashed"}') == 1
    )


def test_killed_within_its_answer_the_client_is_told(chained: Chained, far: Elsewhere) -> None:
    router = chained()
    router.ask("red")

    def read() -> None:
        with router.client() as client:
            events = client.chat.completions.create(model="best", messages=HELLO, max_tokens=1500, stream=True)
            for n, _ in enumerate(pieces(events)):
                if n == 0:
                    kill_hard(router.engine("red"))

    with pytest.raises(openai.APIError, match="was killed by signal 9"):
        read()
    assert far.asked("cloud") == 0


@BOTH
def test_one_that_cannot_start_is_gone_past(chained: Chained, far: Elsewhere, is_stream: bool) -> None:
    router = chained("--no-such-flag")
    assert ask(router, is_stream) == ("cloud serves cloud-model", "cloud/cloud-model", "2")
    assert "start_failed" in router.wait_log("goes on past red/red")


@BOTH
def test_one_that_hangs_is_left_after_its_time(chained: Chained, far: Elsewhere, is_stream: bool) -> None:
    router = chained(first_byte_timeout_s=0.5)
    router.ask("red")
    red = router.engine("red")
    red.send_signal(signal.SIGSTOP)
    try:
        assert ask(router, is_stream) == ("cloud serves cloud-model", "cloud/cloud-model", "2")
    finally:
        red.send_signal(signal.SIGCONT)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (ok(b'{"error": {"message": "down"}}', status=500), "http_500"),
        (ok(b'{"error": {"message": "busy"}}', status=429), "rate_limited"),
        ([RST], "connection_broke"),
        ([SSE_HEAD, 0.05, RST], "connection_broke"),
        ([chunk(b"nonsense"), RST], "connection_broke"),
    ],
    ids=["500", "429", "reset before the first byte", "reset after the head", "no HTTP"],
)
def test_past_this_box_and_the_cloud_the_small_one_answers(
    chained: Chained, far: Elsewhere, script: Script, reason: str
) -> None:
    router = chained("--no-such-flag")
    far.says("cloud", script)
    assert ask(router, True) == ("lxc serves lxc-model", "lxc/lxc-model", "3")
    labels = f'from_model="cloud/cloud-model",to_model="lxc/lxc-model",reason="{reason}"'
    assert router.metric(f"fallback_total{{{labels}}}") == 1


def test_after_the_clouds_first_word_its_end_is_the_clients_to_see(chained: Chained, far: Elsewhere) -> None:
    router = chained("--no-such-flag")
    far.says("cloud", [SSE_HEAD, chunk(event("half")), 0.05, RST])
    with pytest.raises(openai.APIError, match="broke off"):
        ask(router, True)
    assert far.asked("lxc") == 0


@BOTH
def test_nothing_left_is_told_with_every_attempt(chained: Chained, far: Elsewhere, is_stream: bool) -> None:
    router = chained("--no-such-flag")
    far.says("cloud", ok(b"busy", status=503))
    far.leave("lxc")
    with pytest.raises(openai.InternalServerError) as caught:
        ask(router, is_stream)
    assert caught.value.status_code == 503
    body: Any = caught.value.body
    assert [(a["engine"], a["reason"]) for a in body["attempts"]] == [
        ("red", "start_failed"),
        ("cloud", "http_503"),
        ("lxc", "connection_refused"),
    ]


def test_a_slow_start_is_not_waited_for_and_serves_when_it_is_there(chained: Chained, far: Elsewhere) -> None:
    router = chained(go_on_after_s=0.0)
    assert ask(router, False)[1] == "cloud/cloud-model"
    until(lambda: router.phase("red") == "ready", "it has started for nobody in particular")
    text, who, _ = ask(router, False)
    assert_said_by("red", text)
    assert who == "red/red"
