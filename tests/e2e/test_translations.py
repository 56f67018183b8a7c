"""Requests in one dialect before engines that speak another: what is sent, kept, counted, and gone on from."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import Any

import anthropic
import pytest
from chain_kit import refused
from dialect_engines import ENGINES, NDJSON_HEAD, TOKENS_IN, TOKENS_OUT, VECTOR, error, ndjson
from engine_server import DONE, RST, SSE_HEAD, FakeEngineServer, Received, Script, chunk, chunked, event, head, ok, sse
from http_servers import say
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from router_kit import CHAT, Answer, MakeRouter, RouterUnderTest, chat
from test_any_body import run

from enginerouter.config.engines import Remote
from enginerouter.config.model import ApiKey, Cache

HI = [{"role": "user", "content": "hi"}]
SOON = {"commit_after_s": 0.01, "first_byte_commit_s": 0.01, "swap_keepalive_interval_s": 0.01}
PATHS = {"openai": CHAT, "ollama": "/api/chat", "anthropic": "/v1/messages"}


def asked(model: str = "m", **more: Any) -> bytes:
    """A chat that every dialect can say, streamed unless it says otherwise."""
    return json.dumps({"model": model, "messages": HI, "max_tokens": 64, "stream": True, **more}).encode()


async def serving(make_router: MakeRouter, *engines: str, **more: Any) -> RouterUnderTest:
    """An engine per dialect, named for it, whose model has the same name."""
    router = await make_router({name: {"api": (name,)} for name in engines}, **more)
    for name, engine in router.engines.items():
        engine.server.script = ENGINES[name]
    return router


def lines(answer: Answer) -> list[Any]:
    return [json.loads(line) for line in answer.body.splitlines()]


# --- what an engine speaks passes through


@pytest.mark.parametrize("dialect", PATHS)
async def test_what_an_engine_speaks_passes_byte_for_byte(make_router: MakeRouter, dialect: str) -> None:
    router = await serving(make_router, dialect)
    server = router.engines[dialect].server
    odd = b'{ "model":"%s",\n "messages":[{"role":"user","content":"hi"}], "stream":true, "odd": {"b":1,"a":[2.50]} }'
    body = odd % dialect.encode()
    answer = await router.ask(body, path=PATHS[dialect] + "?beta=true", headers={"anthropic-version": "2023-06-01"})
    [received] = server.received
    assert (received.target, received.body) == (PATHS[dialect] + "?beta=true", body)
    assert received.header("anthropic-version") == "2023-06-01"
    assert received.header("accept-encoding") == "identity"
    sent = b"".join(s for s in ENGINES[dialect](received)[1:] if isinstance(s, bytes))
    assert answer.body == unchunked(sent)


def unchunked(raw: bytes) -> bytes:
    body = b""
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        body, raw = body + raw[: int(size, 16)], raw[int(size, 16) + 2 :]
    return body


async def test_only_a_model_s_name_changes_where_the_engine_has_another(make_router: MakeRouter) -> None:
    models = [{"id": "mine", "engine": "ollama", "upstream_id": "llama3:8b"}]
    router = await serving(make_router, "ollama", models=models)
    body = b'{"messages": [], "model": "mine:latest", "keep_alive": "5m", "prompt":"x"}'
    answer = await router.ask(body, path="/api/generate")
    assert router.engines["ollama"].server.received[0].body == body.replace(b"mine:latest", b"llama3:8b")
    assert {line["model"] for line in lines(answer)} == {"llama3:8b"}


async def test_ollama_s_other_name_for_the_model_is_understood(make_router: MakeRouter) -> None:
    router = await serving(make_router, "openai", "ollama")
    for engine in ("openai", "ollama"):
        answer = await router.ask(json.dumps({"name": engine, "messages": HI}).encode(), path="/api/chat")
        assert answer.status == 200
        assert router.engines[engine].server.received[-1].json["model"] == engine


# --- what is translated


async def test_an_engine_gets_a_request_of_its_own_dialect(make_router: MakeRouter) -> None:
    router = await serving(make_router, "openai")
    headers = {
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "x",
        "Accept": "application/x-ndjson",
        "X-Mine": "1",
    }
    answer = await router.ask(asked("openai"), path="/v1/messages?beta=true", headers=headers)
    [received] = router.engines["openai"].server.received
    assert received.target == CHAT
    assert received.json["stream_options"] == {"include_usage": True}
    assert (received.header("content-type"), received.header("x-mine")) == ("application/json", "1")
    assert not [k for k, _ in received.headers if k.lower() in ("anthropic-version", "anthropic-beta", "accept")]
    assert answer.header("content-type") == "text/event-stream; charset=utf-8"
    assert answer.header("x-accel-buffering") == "no"
    assert answer.header("x-enginerouter-resolved") == "openai/openai"
    assert answer.body.startswith(b"event: message_start\n")


@pytest.mark.parametrize(("command", "path"), [("llama-server", "/infill"), ("mlx_lm.server", "/v1/completions")])
async def test_a_gap_is_filled_by_the_path_that_looks_at_what_follows(
    make_router: MakeRouter, command: str, path: str
) -> None:
    router = await make_router({"a": {"start_cmd": (command,)}})
    router.engines["a"].server.script = sse(b'data: {"content": "b", "stop": true, "stop_type": "eos"}\n\n')
    body = json.dumps({"model": "a", "prompt": "a", "suffix": "c"}).encode()
    answer = await router.ask(body, path="/api/generate")
    [received] = router.engines["a"].server.received
    assert received.target == path
    assert "c" in (received.json.get("suffix"), received.json.get("input_suffix"))
    if path == "/infill":
        assert [(line["response"], line["done"]) for line in lines(answer)] == [("b", False), ("", True)]


@pytest.mark.parametrize(
    ("owner", "base", "path"),
    [("llamacpp", "", "/infill"), ("llamacpp", "/v1", "/v1/completions"), ("vllm", "", "/v1/completions")],
)
async def test_a_server_that_calls_itself_llama_cpp_fills_gaps_like_one(
    make_router: MakeRouter, owner: str, base: str, path: str
) -> None:
    server = FakeEngineServer()

    def script(received: Received) -> Script:
        if received.method == "GET":
            return say({"data": [{"id": "m", "object": "model", "owned_by": owner}]})
        return sse(b'data: {"content": "b", "stop": true, "stop_type": "eos"}\n\n')

    server.script = script
    await server.listen()
    remote = Remote(name="r", base_url=f"http://127.0.0.1:{server.port}{base}", discover_models=True)
    router = await make_router(("a",), http=[remote])
    body = json.dumps({"model": "m", "prompt": "a", "suffix": "c", "raw": True}).encode()
    await router.ask(body, path="/api/generate")
    assert server.received[-1].target == path
    [target] = (await router.ask(body, path="/admin/explain?path=/api/generate")).json["targets"]
    assert target["path"] == path
    await router.stop()
    await server.stop()


async def test_the_anthropic_sdk_finds_the_id_of_a_request(make_router: MakeRouter) -> None:
    router = await serving(make_router, "openai")
    http = anthropic.DefaultAsyncHttpxClient(verify=False, trust_env=False)
    async with anthropic.AsyncAnthropic(base_url=router.url, api_key="-", http_client=http, max_retries=0) as client:
        said = await client.messages.create(model="openai", max_tokens=5, messages=[{"role": "user", "content": "hi"}])
        with pytest.raises(anthropic.NotFoundError) as refused:
            await client.messages.create(model="nobody", max_tokens=5, messages=[{"role": "user", "content": "hi"}])
    assert said._request_id
    assert refused.value.request_id == refused.value.response.headers["x-request-id"]


async def test_headers_that_are_given_twice_are_no_trouble(make_router: MakeRouter) -> None:
    router = await serving(make_router, "openai")
    twice = {"anthropic-beta": "a", "Anthropic-Beta": "b", "Accept": "x/y", "accept": "z/z"}
    assert (await router.ask(asked("openai"), path="/v1/messages", headers=twice)).status == 200


async def test_a_picture_of_megabytes_is_translated_beside_other_work(make_router: MakeRouter) -> None:
    router = await serving(make_router, "openai")
    image = "iVBORw0KGgo=" + "A" * (3 << 20)
    messages = [{"role": "user", "content": "See?", "images": [image]}]
    answer = await router.ask(asked("openai", messages=messages, stream=False), path="/api/chat")
    assert answer.status == 200
    [part] = [p for p in router.engines["openai"].server.received[0].json["messages"][0]["content"] if "image_url" in p]
    assert part["image_url"]["url"] == f"data:image/png;base64,{image}"


async def test_a_client_that_leaves_ends_the_engine_s_work(make_router: MakeRouter) -> None:
    router = await serving(make_router, "openai")
    router.engines["openai"].server.script = [SSE_HEAD, chunk(event("x")), asyncio.Event()]
    async with router.client() as client:
        await client.send("POST", "/api/chat", asked("openai"))
        await client.head()
        await client.until(b'"content":"x"')
    exchange = await router.engines["openai"].server.exchange()
    async with asyncio.timeout(5):
        await exchange.gone.wait()
    await router.idle()


async def test_an_engine_that_speaks_anthropic_is_told_which_version(make_router: MakeRouter) -> None:
    router = await serving(make_router, "anthropic")
    assert (await router.ask(asked("anthropic"))).status == 200
    assert router.engines["anthropic"].server.received[0].header("anthropic-version") == "2023-06-01"


async def test_a_model_s_settings_change_what_is_sent_in_the_engine_s_words(make_router: MakeRouter) -> None:
    model = {
        "id": "m",
        "engine": "ollama",
        "upstream_id": "qwen3",
        "default_params": {"options.num_ctx": 8192},
        "set_params": {"options.temperature": 0},
        "disable_thinking_below_max_tokens": 512,
    }
    router = await serving(make_router, "ollama", models=[model])
    await router.ask(chat("m", max_tokens=100, temperature=1))
    body = router.engines["ollama"].server.received[0].json
    assert body["options"] == {"num_predict": 100, "temperature": 0, "num_ctx": 8192}
    assert (body["model"], body["think"]) == ("qwen3", False)


async def test_an_answer_in_one_piece_is_a_stream_to_who_asked_for_one(make_router: MakeRouter) -> None:
    router = await serving(make_router, "openai")
    router.engines["openai"].server.script = lambda r: ENGINES["openai"](
        Received(r.method, r.target, r.headers, json.dumps({**r.json, "stream": False}).encode())
    )
    answer = await router.ask(asked("openai"), path="/api/chat")
    assert answer.header("content-type") == "application/x-ndjson"
    *_, last = lines(answer)
    assert (last["done"], last["eval_count"]) == (True, TOKENS_OUT)


async def test_what_cannot_be_said_is_refused_before_anything_is_loaded(make_router: MakeRouter) -> None:
    router = await serving(make_router, "openai")
    answer = await router.ask(asked("openai", messages=7), path="/api/chat")
    assert (answer.status, answer.json["error"]) == (400, "'messages' must be an array, not a whole number")
    assert router.engines["openai"].starts == 0


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/rerank", "/v1/audio/speech"])
async def test_what_has_no_twin_is_not_supported(make_router: MakeRouter, path: str) -> None:
    router = await serving(make_router, "ollama")
    answer = await router.ask(b'{"model":"ollama","input":"x"}', path=path)
    assert (answer.status, answer.error["code"]) == (501, "not_supported")
    assert router.engines["ollama"].starts == 0


CUT = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("engine", ENGINES)
async def test_any_cut_of_an_engine_s_stream_gives_the_same_bytes(make_router: MakeRouter, engine: str) -> None:
    """Those that tell the time aside."""
    router = await serving(make_router, engine)
    server = router.engines[engine].server
    await router.ask(asked(engine), path=PATHS[engine])
    script = ENGINES[engine](server.received[0])
    assert isinstance(script[0], bytes)
    whole = unchunked(b"".join(s for s in script[1:] if isinstance(s, bytes)))
    given_bytes: dict[str, set[bytes]] = {dialect: set() for dialect in PATHS}

    @CUT
    @given(places=st.lists(st.integers(1, len(whole) - 1), max_size=8, unique=True))
    async def ask(places: list[int]) -> None:
        ends = [0, *sorted(places), len(whole)]
        pieces = [whole[a:b] for a, b in pairwise(ends)]
        server.script = [script[0], *[s for p in chunked(pieces, ends=True) for s in (p, 0.0)]]
        for dialect, path in PATHS.items():
            answer = await router.ask(asked(engine), path=path)
            assert answer.is_whole
            given_bytes[dialect].add(without_times(answer))

    await run(ask)
    assert {dialect: len(found) for dialect, found in given_bytes.items()} == dict.fromkeys(PATHS, 1)


def without_times(answer: Answer) -> bytes:
    request_id = (answer.header("x-request-id") or "").replace("-", "_").encode()
    body = answer.body.replace(request_id, b"ID")
    if not body.startswith(b"{"):
        return b"\n".join(b"data" if b'"created":' in line else line for line in body.split(b"\n"))
    timed = ("created_at", "total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
    return json.dumps([{k: v for k, v in line.items() if k not in timed} for line in lines(answer)]).encode()


# --- errors


async def test_an_error_before_the_first_event_is_a_status(make_router: MakeRouter) -> None:
    """Though the engine's status was 200."""
    router = await serving(make_router, "openai", "ollama")
    said = {"error": {"message": "too long", "type": "invalid_request_error", "code": 400}}
    router.engines["openai"].server.script = sse(b"data: " + json.dumps(said).encode() + b"\n\n")
    answer = await router.ask(asked("openai"), path="/api/chat")
    assert (answer.status, answer.json["error"]) == (400, "too long")
    router.engines["ollama"].server.script = ndjson(b'{"error":"model runner has died"}\n')
    answer = await router.ask(asked("ollama"), path="/v1/messages")
    assert (answer.status, answer.error["type"]) == (502, "api_error")
    assert answer.error["message"] == "model runner has died"


@pytest.mark.parametrize("engine", ENGINES)
async def test_an_engine_s_headers_of_a_refusal_are_kept(make_router: MakeRouter, engine: str) -> None:
    router = await serving(make_router, engine)
    status, *_ = error(429, "busy")(engine)
    assert isinstance(status, bytes)
    router.engines[engine].server.script = [status.replace(b"\r\n", b"\r\nRetry-After: 7\r\n", 1)]
    for path in PATHS.values():
        answer = await router.ask(asked(engine), path=path)
        assert (answer.status, answer.header("retry-after")) == (429, "7")


async def test_a_stream_that_ends_too_early_is_never_ended_tidily(make_router: MakeRouter) -> None:
    router = await serving(make_router, "openai")
    router.engines["openai"].server.script = sse(event("half"))
    answer = await router.ask(asked("openai"), path="/v1/messages")
    assert b"event: error\n" in answer.body
    assert b"message_stop" not in answer.body
    answer = await router.ask(asked("openai"), path="/api/chat")
    assert "before its answer was whole" in lines(answer)[-1]["error"]
    assert not answer.is_whole


@pytest.mark.parametrize("path", PATHS.values())
async def test_a_crash_amid_a_translated_stream_is_named(make_router: MakeRouter, path: str) -> None:
    router = await serving(make_router, "ollama", "openai")
    engine = "ollama" if path == CHAT else "openai"
    fake = router.engines[engine]
    fake.server.script = lambda r: [*ENGINES[engine](r)[:5], asyncio.Event()]
    async with router.client() as client:
        await client.send("POST", path, asked(engine))
        await client.head()
        await client.until(b"Gr" if path != CHAT else b"data:")
        await fake.crash("it died of exit status 139")
        rest, is_whole = await client.rest()
    assert b"exit status 139" in rest
    assert is_whole is (path != "/api/chat")


async def test_what_follows_a_whole_answer_is_not_waited_for(make_router: MakeRouter) -> None:
    """The client has its end before the engine closes its own."""
    router = await serving(make_router, "openai")
    never = asyncio.Event()
    said = {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}]}
    router.engines["openai"].server.script = [
        SSE_HEAD,
        chunk(b"data: " + json.dumps(said).encode() + b"\n\n" + DONE),
        never,
    ]
    answer = await router.ask(asked("openai"), path="/api/chat", within_s=0.9)
    assert answer.is_whole
    assert lines(answer)[-1]["done"]
    never.set()


@pytest.mark.parametrize("path", ["/api/nothing", "/v1/messages/nothing", "/v1/nothing"])
async def test_what_never_reaches_a_handler_is_refused_in_the_dialect_of_its_path(
    make_router: MakeRouter, path: str
) -> None:
    router = await make_router(api_keys=(ApiKey(name="k", key="k"),), max_body_mib=1)
    key = {"Authorization": "Bearer k"}
    known = {"/api/nothing": "/api/chat", "/v1/messages/nothing": "/v1/messages"}.get(path, CHAT)
    answers = {
        404: await router.ask(b"{}", path=path, headers=key),
        405: await router.ask(path=known, headers=key),
        401: await router.ask(b"{}", path=known),
        413: await router.ask(b" " * (1 << 20) + b"{}", path=known, headers=key),
        400: await router.ask(b"{", path=known, headers=key),
    }
    for status, answer in answers.items():
        assert answer.status == status
        said = answer.json
        if path.startswith("/api/"):
            assert isinstance(said["error"], str)
        elif path.startswith("/v1/messages"):
            assert (said["type"], isinstance(said["error"]["type"], str)) == ("error", True)
            assert said["request_id"] == answer.header("x-request-id")
        else:
            assert {"message", "type", "param", "code"} <= set(said["error"])


# --- keep-alive


@pytest.mark.parametrize(
    ("path", "mode", "frame"),
    [
        ("/api/chat", "comment", b" "),
        ("/api/chat", "event", b" "),
        ("/v1/messages", "comment", b'event: ping\ndata: {"type":"ping"}\n\n'),
        ("/v1/messages", "event", b'event: model_switching\ndata: {"type": "model_switching", "status": "swap '),
    ],
)
async def test_waiting_clients_get_what_their_dialect_allows(
    make_router: MakeRouter, path: str, mode: str, frame: bytes
) -> None:
    router = await serving(make_router, "openai", **SOON)
    router.engines["openai"].starting.shut()
    async with router.client() as client:
        await client.send("POST", path, asked("openai"), {"X-EngineRouter-Keepalive": mode})
        assert await client.head() == 200
        assert (client.header("content-type") or "").startswith(
            "application/x-ndjson" if path == "/api/chat" else "text/event-stream"
        )
        for _ in range(3):
            assert (await client.piece()).startswith(frame)
        router.engines["openai"].starting.open()
        rest, is_whole = await client.rest()
    assert is_whole
    assert (b": served by openai/openai\n\n" in rest) is (path == "/v1/messages")


async def test_off_holds_the_status_whatever_it_takes(make_router: MakeRouter) -> None:
    router = await serving(make_router, "openai", **SOON)
    silent = asyncio.Event()
    router.engines["openai"].server.script = lambda r: [*ENGINES["openai"](r)[:1], silent, RST]
    async with router.client() as client:
        await client.send("POST", "/api/chat", asked("openai"), {"X-EngineRouter-Keepalive": "off"})
        await router.engines["openai"].server.exchange()
        await asyncio.sleep(0.05)
        silent.set()
        assert await client.head() == 502


async def test_a_long_prefill_after_the_head_is_told_as_well(make_router: MakeRouter) -> None:
    router = await serving(make_router, "ollama", **SOON)
    silent = asyncio.Event()
    router.engines["ollama"].server.script = lambda r: [NDJSON_HEAD, silent, *ENGINES["ollama"](r)[1:]]
    async with router.client() as client:
        await client.send("POST", "/v1/messages", asked("ollama"))
        assert await client.head() == 200
        assert (await client.piece()).startswith(b"event: ping\n")
        silent.set()
        rest, is_whole = await client.rest()
    assert is_whole
    assert rest.endswith(b'data: {"type":"message_stop"}\n\n')


async def test_white_space_before_json_for_who_asks(make_router: MakeRouter) -> None:
    router = await serving(make_router, "openai", **SOON)
    router.engines["openai"].starting.shut()
    async with router.client() as client:
        await client.send("POST", "/api/chat", asked("openai", stream=False), {"X-EngineRouter-Keepalive": "json"})
        assert await client.head() == 200
        assert client.header("content-type") == "application/json"
        assert await client.piece() == b" "
        router.engines["openai"].starting.open()
        rest, is_whole = await client.rest()
    assert is_whole
    assert json.loads(rest)["done"] is True


# --- chains


async def test_a_chain_goes_on_across_dialects(make_router: MakeRouter) -> None:
    """Its first target speaks OpenAI, its next Ollama; clients of all three see one answer."""
    router = await serving(
        make_router,
        "openai",
        "ollama",
        together=(("openai", "ollama"),),
        aliases={"c": {"chain": ["openai", "ollama"]}},
    )
    for path in PATHS.values():
        router.engines["openai"].server.script = refused(503, "no")
        answer = await router.ask(asked("c"), path=path)
        assert (answer.status, answer.header("x-enginerouter-resolved")) == (200, "ollama/ollama")
        assert answer.header("x-enginerouter-attempts") == "2"
        router.router.health.reset()
    assert [r.target for r in router.engines["ollama"].server.received] == ["/api/chat"] * 3
    assert [r.target for r in router.engines["openai"].server.received] == [CHAT] * 3


@pytest.mark.parametrize("script", [
    sse(b'data: {"error":{"message":"no","code":500}}\n\n'),
    [SSE_HEAD, chunk(b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'), RST],
    ok(b'{"error":{"message":"no","code":500}}'),
    ok(b"<html>", status=502, headers=[("Content-Type", "text/html")]),
])  # fmt: skip
async def test_a_chain_goes_on_while_nothing_of_an_answer_has_come(make_router: MakeRouter, script: Script) -> None:
    router = await serving(make_router, "openai", "ollama", aliases={"c": {"chain": ["openai", "ollama"]}}, **SOON)
    router.engines["openai"].server.script = script
    answer = await router.ask(asked("c"), path="/api/chat")
    assert (answer.status, answer.is_whole) == (200, True)
    assert lines(answer)[-1]["done"]


async def test_a_chain_passes_over_what_cannot_be_translated_for_an_engine(make_router: MakeRouter) -> None:
    chain = {"chain": ["anthropic", "openai"]}
    router = await serving(make_router, "anthropic", "openai", aliases={"c": {**chain, "mix_embeddings": True}})
    answer = await router.ask(b'{"model":"c","input":"x"}', path="/api/embed")
    assert (answer.status, answer.header("x-enginerouter-resolved")) == (200, "openai/openai")


async def test_on_mismatch_goes_on_from_what_cannot_be_said(make_router: MakeRouter) -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}
    body = {"messages": [{"role": "user", "content": [image]}]}
    aliases = {
        "stops": {"chain": ["ollama", "openai"]},
        "next": {"chain": ["ollama", "openai"], "on_mismatch": "next"},
    }
    router = await serving(make_router, "ollama", "openai", aliases=aliases)
    stopped = await router.ask(json.dumps({"model": "stops", **body}).encode())
    assert (stopped.status, router.engines["ollama"].starts) == (400, 0)
    went_on = await router.ask(json.dumps({"model": "next", **body}).encode())
    assert (went_on.status, went_on.header("x-enginerouter-resolved")) == (200, "openai/openai")


async def test_embeddings_of_ollama_clients_do_not_go_on_to_another_model(make_router: MakeRouter) -> None:
    router = await serving(make_router, "openai", "ollama", aliases={"c": {"chain": ["openai", "ollama"]}})
    router.engines["openai"].server.script = refused(503)
    answer = await router.ask(b'{"model":"c","input":"x"}', path="/api/embed")
    assert answer.status == 503
    assert "other_vectors" in answer.json["error"]


# --- kept answers


async def test_embeddings_by_ollama_s_api_are_kept(make_router: MakeRouter) -> None:
    router = await serving(make_router, "openai", cache=Cache())
    first, again = [await router.ask(b'{"model":"openai","input":"hi"}', path="/api/embed") for _ in range(2)]
    assert [a.header("x-enginerouter-cache") for a in (first, again)] == ["miss", "hit"]
    assert first.body == again.body
    assert again.json["embeddings"] == [VECTOR]
    other = await router.ask(b'{"model":"openai","prompt":"hi"}', path="/api/embeddings")
    assert (other.header("x-enginerouter-cache"), other.json) == ("miss", {"embedding": VECTOR})
    assert len(router.engines["openai"].server.received) == 2


async def test_base64_and_plain_vectors_are_kept_apart(make_router: MakeRouter) -> None:
    router = await serving(make_router, "ollama", cache=Cache())
    body = {"model": "ollama", "input": "hi"}
    plain = await router.ask(json.dumps(body).encode(), path="/v1/embeddings")
    packed = await router.ask(json.dumps({**body, "encoding_format": "base64"}).encode(), path="/v1/embeddings")
    assert (plain.json["data"][0]["embedding"], packed.header("x-enginerouter-cache")) == (VECTOR, "miss")
    assert isinstance(packed.json["data"][0]["embedding"], str)


async def test_a_deterministic_chat_is_kept_in_the_client_s_dialect(make_router: MakeRouter) -> None:
    router = await serving(make_router, "openai", cache=Cache(deterministic=True))
    body = json.dumps({"model": "openai", "messages": HI, "stream": False, "options": {"temperature": 0}}).encode()
    first, again = [await router.ask(body, path="/api/chat") for _ in range(2)]
    assert again.header("x-enginerouter-cache") == "hit"
    assert first.body == again.body
    assert again.json["done"] is True


async def test_an_engine_s_error_is_not_kept(make_router: MakeRouter) -> None:
    router = await serving(make_router, "openai", cache=Cache())
    router.engines["openai"].server.script = say({"error": {"message": "no", "code": 500}})
    for _ in range(2):
        answer = await router.ask(b'{"model":"openai","input":"hi"}', path="/api/embed")
        assert (answer.status, answer.header("x-enginerouter-cache")) == (500, "miss")


# --- what is counted


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS.values())
@pytest.mark.parametrize("engine", ENGINES)
async def test_tokens_are_counted_whoever_asks_whom(
    make_router: MakeRouter, engine: str, path: str, stream: bool
) -> None:
    router = await serving(make_router, engine)
    body = json.loads(asked(engine, stream=stream))
    if stream and (path, engine) == (CHAT, "openai"):
        body["stream_options"] = {"include_usage": True}
    assert (await router.ask(json.dumps(body).encode(), path=path)).status == 200
    await router.idle()
    metrics = (await router.get("/metrics")).body.decode()
    label = f'target="{engine}/{engine}"'
    assert f'enginerouter_tokens_total{{direction="in",{label}}} {TOKENS_IN}\n' in metrics
    assert f'enginerouter_tokens_total{{direction="out",{label}}} {TOKENS_OUT}\n' in metrics


async def test_an_event_says_how_fast_an_answer_came(make_router: MakeRouter) -> None:
    router = await serving(make_router, "ollama")
    await router.ask(asked("ollama"), path="/v1/messages")
    async with router.client() as client:
        await client.send("GET", "/events")
        await client.head()
        seen = await client.until(b'"tok_s"')
    said = next(line for line in seen.split(b"\n") if b'"tok_s"' in line)
    told = json.loads(said.partition(b":")[2])
    assert (told["tokens_in"], told["tokens_out"], told["dialect"]) == (TOKENS_IN, TOKENS_OUT, "anthropic")
    assert told["tok_s"] > 0


async def test_an_answer_with_no_counts_counts_nothing(make_router: MakeRouter) -> None:
    router = await serving(make_router, "openai")
    router.engines["openai"].server.script = [head(200, [("Content-Length", "2")]), b"ok"]
    assert (await router.ask(chat("openai"))).body == b"ok"
    assert "enginerouter_tokens_total{" not in (await router.get("/metrics")).body.decode()
