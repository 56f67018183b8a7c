"""Whatever a client sends: an answer, or a 4xx with an error body in its dialect; never a 500, never a traceback."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from dialect_engines import ENGINES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from router_kit import Answer, MakeRouter, RouterUnderTest

from enginerouter.web.extras import GENERATING, LOOKING
from enginerouter.web.surface import INFERENCE_PATHS

# All that read a body: each may be the one that trusts it.
POST_PATHS = [
    *INFERENCE_PATHS,
    *GENERATING,
    *LOOKING,
    "/v1/messages/count_tokens",
    "/v1/responses/resp_1/cancel",
    "/api/show",
    "/api/pull",
    "/api/create",
    "/api/copy",
    "/admin/swap",
    "/admin/unload",
    "/admin/reset",
    "/admin/explain",
    "/admin/discover",
    "/admin/release",
    "/models/switch",
]
CONTENT_TYPES = [
    "application/json",
    "text/plain",
    "multipart/form-data; boundary=B",
    "multipart/form-data",
    'multipart/form-data; boundary="',
    "multipart/mixed; boundary=B",
    "",
    "\udcff",
]
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

names = st.sampled_from(["a", "b", "c", "chain", "fast", "a:latest", "a/a", "nobody"]) | st.text(max_size=20)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
good_messages = st.just([{"role": "user", "content": "hi"}])
objects = st.fixed_dictionaries(
    {},
    optional={
        "model": names | values,
        "stream": st.booleans() | values,
        "previous_response_id": st.text(max_size=10) | values,
        "engine": names | values,
        "messages": values | good_messages,
        "prompt": values,
        "input": values,
        "options": values,
        "keep_alive": values,
        "tools": values,
        "max_tokens": values,
    },
)


def check(answer: Answer, caplog: pytest.LogCaptureFixture, path: str = "/v1/chat/completions") -> None:
    assert answer.is_whole
    assert answer.status < 500 or answer.status == 501, answer
    if answer.status >= 400:
        assert answer.header("content-type") == "application/json"
        check_error(answer, path)
    tracebacks = [r for r in caplog.get_records("call") if r.exc_info or r.levelno >= logging.ERROR]
    assert not tracebacks
    caplog.clear()


def check_error(answer: Answer, path: str) -> None:
    if path.startswith("/api/"):
        assert isinstance(answer.json["error"], str)
        assert answer.json["error"]
        return
    assert answer.error["message"]
    if path.startswith("/v1/messages"):
        assert answer.json["type"] == "error"
        assert answer.error["type"]
    else:
        assert {"message", "type", "param", "code"} <= set(answer.error)


@pytest.fixture
async def router(make_router: MakeRouter) -> RouterUnderTest:
    """Three engines, each with a dialect of its own; what is not asked of it in that dialect is translated."""
    engines: dict[str, Any] = {"a": {}, "b": {"api": ("ollama",)}, "c": {"api": ("anthropic",)}}
    router = await make_router(
        {name: {"holds_memory": False, **more} for name, more in engines.items()},
        aliases={"fast": "a", "chain": {"chain": ["b", "a"]}},
        allow_destructive_ollama_api=True,
    )
    for name, engine in router.engines.items():
        engine.server.script = ENGINES[{"b": "ollama", "c": "anthropic"}.get(name, "openai")]
    return router


@pytest.mark.parametrize("path", POST_PATHS)
async def test_any_json(router: RouterUnderTest, caplog: pytest.LogCaptureFixture, path: str) -> None:
    @QUICK
    @given(body=objects | values, ascii_only=st.booleans())
    async def ask(body: object, ascii_only: bool) -> None:
        raw = json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        check(await router.ask(raw, path=path), caplog, path)

    await run(ask)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/audio/transcriptions", "/admin/swap"])
async def test_any_bytes(router: RouterUnderTest, caplog: pytest.LogCaptureFixture, path: str) -> None:
    part = st.sampled_from(
        [b"--B", b"--B--", b"\r\n", b"\r\n\r\n", b'Content-Disposition: form-data; name="model"', b"a", b"\x00"]
    )
    forms = st.lists(part, max_size=10).map(b"".join)

    @settings(QUICK, max_examples=80)
    @given(body=st.binary(max_size=300) | forms, content_type=st.sampled_from(CONTENT_TYPES))
    async def ask(body: bytes, content_type: str) -> None:
        check(await router.ask(body, path=path, headers={"Content-Type": content_type}), caplog)

    await run(ask)


async def test_any_query_and_headers(router: RouterUnderTest, caplog: pytest.LogCaptureFixture) -> None:
    visible = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"), max_size=20)
    values = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20)
    header_names = st.sampled_from(
        ["X-EngineRouter-Keepalive", "X-Request-Id", "X-Any", "Connection", "Accept", "Idempotency-Key", "User-Agent"]
    )

    @settings(QUICK, max_examples=80)
    @given(query=visible, headers=st.dictionaries(header_names, values, max_size=3))
    async def ask(query: str, headers: dict[str, str]) -> None:
        answer = await router.ask(b'{"model":"a"}', path=f"/v1/chat/completions?{query}", headers=headers)
        check(answer, caplog)

    await run(ask)


async def run(ask: object) -> None:
    """Run an async property inside the loop of its test: hypothesis itself only calls plain functions."""
    loop = asyncio.get_running_loop()
    inner = ask.hypothesis.inner_test  # type: ignore[attr-defined]

    calls = 0

    def plain(*args: object, **kwargs: object) -> None:
        nonlocal calls
        calls += 1
        asyncio.run_coroutine_threadsafe(inner(*args, **kwargs), loop).result(20)

    ask.hypothesis.inner_test = plain  # type: ignore[attr-defined]
    await asyncio.to_thread(ask)  # type: ignore[arg-type]
    assert calls >= 20
