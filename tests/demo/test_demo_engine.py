"""The built-in demo engine as its users meet it: a process, its memory, and the official openai client."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import openai
import psutil
import pytest

MIB = 1024 * 1024
ASK: list[Any] = [{"role": "user", "content": "Who are you?"}]


class Demo:
    """A demo engine's process and what a test asks of it."""

    def __init__(self, *flags: str, name: str = "red") -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        argv = [sys.executable, "-m", "enginerouter.demo.engine", "--port", str(self.port), "--name", name, *flags]
        self.started_at = time.monotonic()
        self.process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON; (0, None) while nothing listens."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)
        except OSError:
            return 0, None

    def post(self, path: str, body: bytes) -> tuple[int, Any]:
        request = urllib.request.Request(self.url + path, data=body, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def until(self, is_so: Callable[[], bool], timeout_s: float = 10) -> float:
        """Wait until `is_so`; return the seconds since the process was started."""
        deadline = time.monotonic() + timeout_s
        while not is_so():
            assert time.monotonic() < deadline, f"not within {timeout_s} s"
            time.sleep(0.005)
        return time.monotonic() - self.started_at

    def until_ready(self) -> float:
        return self.until(lambda: self.get("/health")[0] == 200)

    def rss(self) -> int:
        rss: int = psutil.Process(self.process.pid).memory_info().rss
        return rss

    def end(self) -> tuple[int, str]:
        """Wait for its end; return its exit status and what it logged."""
        _, logged = self.process.communicate(timeout=10)
        return self.process.returncode, logged


@contextlib.contextmanager
def demo(*flags: str, name: str = "red") -> Iterator[Demo]:
    engine = Demo(*flags, name=name)
    try:
        yield engine
    finally:
        engine.process.kill()
        engine.process.communicate()


@pytest.fixture(scope="module")
def red() -> Iterator[Demo]:
    with demo("--memory-mib", "8", "--load-s", "0", "--tokens-per-s", "0") as engine:
        engine.until_ready()
        yield engine


@pytest.fixture
def client(red: Demo) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{red.url}/v1", api_key="none", max_retries=0, timeout=10) as client:
        yield client


# --- its life ----------------------------------------------------------------------------------------------


def test_it_listens_soon_and_says_503_until_it_is_loaded() -> None:
    with demo("--memory-mib", "8", "--load-s", "0.5") as engine:
        listening_s = engine.until(lambda: engine.get("/health")[0] != 0)
        assert engine.get("/v1/models")[0] == 503
        status, body = engine.get("/health")
        assert (status, body["error"]["message"]) == (503, "Loading model")
        assert engine.until_ready() >= 0.5
        assert listening_s < 2, "0.25 s alone on a slow machine; this leaves room for a busy one"


def test_it_holds_real_memory_gradually_and_lets_go_of_it_on_sigterm() -> None:
    with demo("--memory-mib", "256", "--load-s", "0.5") as engine:
        engine.until(lambda: engine.get("/health")[0] != 0)
        before = engine.rss()
        seen = []
        while engine.get("/health")[0] != 200:
            seen.append(engine.rss() - before)
            time.sleep(0.01)
        assert any(60 * MIB < held < 200 * MIB for held in seen), "memory was not taken gradually"
        assert 256 * MIB < engine.rss() < 256 * MIB + 100 * MIB
        shared = psutil.Process(engine.process.pid).memory_info().shared
        assert shared < 100 * MIB, "shared memory, not its own"
        asked_at = time.monotonic()
        engine.process.terminate()
        assert engine.end()[0] == 0
        assert time.monotonic() - asked_at < 1, "0.1 s alone; this leaves room for a busy machine"


def test_sigterm_while_it_loads_ends_it_with_0() -> None:
    with demo("--memory-mib", "64", "--load-s", "60") as engine:
        engine.until(lambda: engine.get("/health")[0] != 0)
        engine.process.terminate()
        assert engine.end()[0] == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to another process there")
def test_ctrl_c_ends_it_without_a_traceback() -> None:
    with demo("--memory-mib", "8", "--load-s", "0") as engine:
        engine.until_ready()
        engine.process.send_signal(signal.SIGINT)
        status, logged = engine.end()
        assert status == 0
        assert "Traceback" not in logged


def test_sigterm_cuts_a_running_answer_without_done() -> None:
    with demo("--memory-mib", "8", "--load-s", "0", "--tokens-per-s", "50") as engine:
        engine.until_ready()
        body = {"stream": True, "messages": ASK, "max_tokens": 10_000, "ignore_eos": True}
        request = urllib.request.Request(f"{engine.url}/v1/chat/completions", data=json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=10) as stream:
            stream.readline()
            engine.process.terminate()
            asked_at = time.monotonic()
            assert engine.end()[0] == 0
            assert time.monotonic() - asked_at < 1
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):  # no end of the stream
                stream.read()


def test_a_taken_port_ends_it_with_1_and_the_reason(red: Demo) -> None:
    argv = [sys.executable, "-m", "enginerouter.demo.engine", "--port", str(red.port), "--name", "blue"]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    assert ended.returncode == 1
    assert f"couldn't bind 127.0.0.1:{red.port}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_fail_load_ends_it_with_1_halfway() -> None:
    with demo("--memory-mib", "8", "--load-s", "0.4", "--fail-load") as engine:
        status, logged = engine.end()
        assert status == 1
        assert "failed to load model" in logged
        assert "Traceback" not in logged


def test_fail_ready_keeps_it_at_503() -> None:
    with demo("--memory-mib", "8", "--load-s", "0", "--fail-ready") as engine:
        engine.until(lambda: engine.get("/health")[0] != 0)
        time.sleep(0.3)
        assert engine.get("/health")[0] == 503


@pytest.mark.skipif(sys.platform == "win32", reason="exit statuses by signal are POSIX's")
def test_fail_after_tokens_kills_it_mid_answer() -> None:
    with demo("--memory-mib", "8", "--load-s", "0", "--tokens-per-s", "0", "--fail-after-tokens", "3") as engine:
        engine.until_ready()
        with openai.OpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0) as client:
            stream = client.chat.completions.create(model="red", messages=ASK, stream=True)
            words = []
            with pytest.raises(Exception, match=r"(?i)connection|incomplete"):
                words.extend(chunk.choices[0].delta.content for chunk in stream)
        assert [word for word in words if word] == ["This", " is", " red."]
        assert engine.end()[0] == -signal.SIGABRT


def test_more_memory_than_there_can_be_is_a_clear_end() -> None:
    with demo("--memory-mib", str(2**40), "--load-s", "0") as engine:
        status, logged = engine.end()
        assert status == 1
        assert f"cannot hold {2**40} MiB" in logged
        assert "Traceback" not in logged


# --- what it says ------------------------------------------------------------------------------------------


def test_chat_says_who_it_is_and_what_it_was_told(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="red", messages=ASK)
    said = answer.choices[0].message.content
    assert said is not None
    assert said.startswith("This is red. You said: “Who are you?”.")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "red"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(said.split())


def test_a_chat_stream_says_the_same_then_its_usage_and_done(red: Demo, client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="red", messages=ASK).choices[0].message.content
    stream = client.chat.completions.create(
        model="red", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    body = {"model": "red", "messages": ASK, "stream": True}
    request = urllib.request.Request(f"{red.url}/v1/chat/completions", data=json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=5) as raw:
        assert raw.headers["Content-Type"] == "text/event-stream"
        frames = raw.read().decode().split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    assert not any('"usage"' in frame for frame in frames)


def test_max_tokens_cuts_it_and_ignore_eos_keeps_it_talking(client: openai.OpenAI) -> None:
    cut = client.chat.completions.create(model="red", messages=ASK, max_tokens=2)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("This is", "length")
    long = client.chat.completions.create(model="red", messages=ASK, max_tokens=500, extra_body={"ignore_eos": True})
    assert long.usage is not None
    assert long.usage.completion_tokens == 500
    assert len((long.choices[0].message.content or "").split()) == 500


def test_completions_answer_and_stream(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="red", prompt="Once upon a time")
    assert answer.choices[0].text.startswith("This is red.")
    stream = list(client.completions.create(model="red", prompt="Once upon a time", stream=True))
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text
    assert stream[-1].choices[0].finish_reason == "stop"


def test_responses_answer_and_stream(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="red", input="Who are you?")
    assert answer.status == "completed"
    assert answer.output_text.startswith("This is red.")
    events = list(client.responses.create(model="red", input="Who are you?", stream=True))
    assert events[0].type == "response.created"
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == answer.output_text
    assert events[-1].type == "response.completed"
    assert [e.sequence_number for e in events] == list(range(len(events)))


def test_a_response_cut_by_its_limit_is_incomplete(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="red", input="Who are you?", max_output_tokens=3)
    assert (answer.status, answer.output_text) == ("incomplete", "This is red.")
    events = list(client.responses.create(model="red", input="Hi", max_output_tokens=3, stream=True))
    assert events[-1].type == "response.incomplete"


def test_embeddings_are_the_same_as_floats_and_as_base64(client: openai.OpenAI) -> None:
    floats = client.embeddings.create(model="red", input=["a", "b"], encoding_format="float")
    packed = client.embeddings.create(model="red", input=["a", "b"])  # the SDK asks for base64 by itself
    for one, other in zip(floats.data, packed.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    assert floats.data[0].embedding != floats.data[1].embedding
    assert math.hypot(*floats.data[0].embedding) == pytest.approx(1)
    assert len(client.embeddings.create(model="red", input="a", dimensions=7).data[0].embedding) == 7


def test_a_lone_surrogate_is_embedded_as_any_text(red: Demo) -> None:
    status, answer = red.post("/v1/embeddings", b'{"input": "\\ud800"}')
    assert status == 200
    assert len(answer["data"][0]["embedding"]) == 64


def test_models_lists_it_alone(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["red"]
    assert client.models.retrieve("red").id == "red"


def test_a_request_for_another_model_is_a_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'blue' does not exist here; this engine serves 'red'"):
        client.chat.completions.create(model="blue", messages=ASK)


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v1/chat/completions", b"{", 400, "not JSON"),
        ("/v1/chat/completions", b"[]", 400, "JSON object"),
        ("/v1/chat/completions", b"{}", 400, "'messages'"),
        ("/v1/chat/completions", b'{"messages": [1]}', 400, "'messages'"),
        ("/v1/chat/completions", b'{"messages": [], "max_tokens": 0}', 400, "at least 1"),
        ("/v1/chat/completions", b"[" * 100_000, 400, "not JSON"),
        ("/v1/chat/completions", b"\xff\xfe\xff", 400, "not JSON"),
        ("/v1/completions", b'{"prompt": [1, 2]}', 400, "'prompt'"),
        ("/v1/responses", b"{}", 400, "'input'"),
        ("/v1/embeddings", b'{"input": []}', 400, "'input'"),
        ("/v1/embeddings", b'{"input": "a", "encoding_format": "hex"}', 400, "'encoding_format'"),
        ("/v1/embeddings", b'{"input": "a", "dimensions": true}', 400, "'dimensions'"),
        ("/v1/completions", b'{"prompt": "", "max_tokens": 1000000000000, "ignore_eos": true}', 400, "at most 1000000"),
        ("/v1/nothing", b"{}", 404, "Not Found: /v1/nothing"),
        ("/health", b"{}", 405, "Method Not Allowed"),
    ],
)
def test_errors_have_the_shape_of_openai(red: Demo, path: str, body: bytes, status: int, words: str) -> None:
    got, answer = red.post(path, body)
    assert got == status
    assert words in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"


# --- its clients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_it_stops_talking_when_its_client_leaves(stream: bool) -> None:
    with demo("--memory-mib", "8", "--load-s", "0", "--tokens-per-s", "20") as engine:
        engine.until_ready()
        body = json.dumps({"stream": stream, "messages": ASK, "max_tokens": 5000, "ignore_eos": True}).encode()
        with socket.create_connection(("127.0.0.1", engine.port)) as leaver:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            leaver.sendall(head.encode() + body)
            engine.until(lambda: engine.get("/health")[1]["generating"] == 1)
        engine.until(lambda: engine.get("/health")[1]["generating"] == 0, timeout_s=2)
        engine.process.terminate()
        status, logged = engine.end()
        assert status == 0
        assert "the client left; stopped talking" in logged


def test_tokens_come_at_the_pace_asked_for() -> None:
    with demo("--memory-mib", "8", "--load-s", "0", "--tokens-per-s", "50") as engine:
        engine.until_ready()
        with openai.OpenAI(base_url=f"{engine.url}/v1", api_key="none") as client:
            asked_at = time.monotonic()
            client.chat.completions.create(model="red", messages=ASK, max_tokens=25)
            assert 0.5 <= time.monotonic() - asked_at < 2
