"""Which requests are asked of the cache, which answers are kept, and what a client may say about it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginerouter.cache.rules import Wish, is_repeatable, is_worth_keeping, may_ask, wish_of

CHAT, MESSAGES, OLLAMA, EMBED = "/v1/chat/completions", "/v1/messages", "/api/chat", "/v1/embeddings"
SAID = {"messages": [{"role": "user", "content": "hi"}]}
COLD = {**SAID, "temperature": 0}
JSON = "application/json"


@pytest.mark.parametrize(
    ("path", "embeddings", "deterministic", "expected"),
    [
        (EMBED, True, False, True),
        ("/v1/rerank", True, False, True),
        ("/rerank", True, False, True),
        ("/api/embed", True, False, True),
        ("/api/embeddings", True, False, True),
        (EMBED, False, True, False),
        (CHAT, True, False, False),
        (CHAT, False, True, True),
        (MESSAGES, False, True, True),
        (OLLAMA, False, True, True),
        ("/v1/responses", True, True, False),
        ("/v1/audio/speech", True, True, False),
        ("/v1/images/generations", True, True, False),
        ("/v1/completions", True, True, False),
    ],
)
def test_which_paths_are_asked(path: str, embeddings: bool, deterministic: bool, expected: bool) -> None:
    assert may_ask(path, embeddings=embeddings, deterministic=deterministic) is expected


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (EMBED, {"input": "a"}),
        (EMBED, {"input": ["a"], "encoding_format": "base64"}),
        ("/v1/rerank", {"query": "q", "documents": ["a"]}),
        ("/rerank", {"query": "q", "texts": ["a"]}),
        ("/api/embed", {"input": "a"}),
        ("/api/embeddings", {"prompt": "a"}),
        (CHAT, COLD),
        (CHAT, {**COLD, "temperature": 0.0, "n": 1, "stream": False, "tools": []}),
        (MESSAGES, COLD),
        (OLLAMA, {**SAID, "stream": False, "options": {"temperature": 0}}),
    ],
)
def test_what_is_the_same_every_time(path: str, body: dict[str, Any]) -> None:
    assert is_repeatable(path, body)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (EMBED, {}),
        ("/api/embed", {"input": ""}),  # to Ollama: load the model
        ("/api/embed", {"input": []}),
        ("/v1/rerank", {"query": "q"}),
        (CHAT, SAID),
        (CHAT, {**COLD, "temperature": 0.1}),
        (CHAT, {**COLD, "temperature": False}),
        (CHAT, {**COLD, "temperature": "0"}),
        (CHAT, {**COLD, "stream": True}),
        (CHAT, {**COLD, "stream": None}),
        (CHAT, {**COLD, "n": 2}),
        (CHAT, {**COLD, "best_of": 3}),
        (CHAT, {**COLD, "tools": [{"type": "function"}]}),
        (CHAT, {**COLD, "functions": [{}]}),
        (CHAT, {**COLD, "web_search_options": {"x": 1}}),
        (CHAT, {**COLD, "store": True}),
        (CHAT, {"temperature": 0, "messages": []}),
        (OLLAMA, {**SAID, "options": {"temperature": 0}}),  # streams unless told otherwise
        (OLLAMA, {**COLD, "stream": False}),  # its temperature is in the options
        ("/v1/responses", {"input": "a", "temperature": 0}),
    ],
)
def test_what_may_differ_from_one_time_to_the_next(path: str, body: dict[str, Any]) -> None:
    assert not is_repeatable(path, body)


def answer(**more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop", **more}]}


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        (EMBED, JSON, {"data": [{"embedding": [1]}]}),
        (EMBED, "application/json; charset=utf-8", {"data": [{"embedding": [1]}], "error": None}),
        ("/api/embed", JSON, {"model": "x", "embeddings": [[1]]}),
        ("/api/embeddings", JSON, {"embedding": [1]}),
        ("/v1/rerank", JSON, {"results": [{"index": 0}]}),
        ("/rerank", JSON, [{"index": 0, "score": 1}]),
        (CHAT, JSON, answer()),
        (CHAT, JSON, answer(finish_reason="length")),
        (MESSAGES, JSON, {"type": "message", "content": [], "stop_reason": "end_turn"}),
        (OLLAMA, JSON, {"message": {}, "done": True, "done_reason": "stop"}),
    ],
)
def test_whole_answers_are_kept(path: str, kind: str, body: Any) -> None:
    assert is_worth_keeping(path, kind, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        (EMBED, JSON, {"error": {"message": "in a 200"}}),
        (EMBED, "text/plain", {"data": []}),
        (EMBED, "", {"data": []}),
        (EMBED, JSON, "text"),
        (EMBED, JSON, {}),
        (EMBED, JSON, {"data": []}),
        (EMBED, JSON, {"data": None}),
        (EMBED, JSON, {"detail": "overloaded"}),
        (CHAT, JSON, [1]),
        (CHAT, JSON, {"choices": []}),
        (CHAT, JSON, answer(finish_reason=None)),
        (CHAT, JSON, answer(finish_reason="error")),
        (CHAT, JSON, answer(finish_reason="tool_calls")),
        (CHAT, JSON, answer(finish_reason=["stop"])),
        (CHAT, JSON, answer(error={"code": 502})),
        (MESSAGES, JSON, {"type": "message", "stop_reason": "tool_use"}),
        (OLLAMA, JSON, {"message": {}, "done": False}),
        (OLLAMA, JSON, {"message": {}, "done": True, "done_reason": "load"}),
    ],
)
def test_errors_and_halves_are_not(path: str, kind: str, body: Any) -> None:
    assert not is_worth_keeping(path, kind, json.dumps(body).encode())


@pytest.mark.parametrize("raw", [b"", b"{", b'{"data": [1', b"[" * 100_000])
def test_what_is_no_json_is_not_kept(raw: bytes) -> None:
    assert not is_worth_keeping(EMBED, JSON, raw)


@pytest.mark.parametrize(
    ("said", "wish"),
    [
        ([], Wish()),
        (["max-age=60", "private"], Wish()),
        (["no-store"], Wish(may_read=False, may_keep=False)),
        (["max-age=0, No-Store"], Wish(may_read=False, may_keep=False)),
        (["no-cache"], Wish(may_read=False)),
        (["x", "max-age = 0"], Wish(may_read=False)),
    ],
)
def test_the_client_s_cache_control(said: list[str], wish: Wish) -> None:
    assert wish_of(said) == wish
