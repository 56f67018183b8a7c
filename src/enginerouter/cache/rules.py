"""Which requests and answers may be kept. Pure.

Kept are answers that are the same every time they are asked for: of embeddings and reranking, and, where the operator
wants it, of chats with `temperature: 0` that are not streamed. Doubtful is not kept: a miss costs time, a wrong hit
costs trust.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

# Path → the keys of which one must hold something. Ollama takes an empty `input` for "load the model".
VECTORS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "/v1/embeddings": ("input",),
        "/v1/rerank": ("documents", "texts"),
        "/rerank": ("documents", "texts"),
        "/api/embed": ("input",),
        "/api/embeddings": ("prompt", "input"),
    }
)
# Where the answers to these have what was asked for, in the words of all dialects.
RESULTS = ("data", "results", "embeddings", "embedding")
# Path → what must not be empty, where the temperature is, and whether an answer is streamed unless the request says
# otherwise.
CHATS: Mapping[str, tuple[str, str | None, bool]] = MappingProxyType(
    {
        "/v1/chat/completions": ("messages", None, False),
        "/v1/messages": ("messages", None, False),
        "/api/chat": ("messages", "options", True),
        "/api/generate": ("prompt", "options", True),
    }
)
# A request that names one of these is never deterministic. Tools: a call is an action with an id of its own, an agent
# that asks again wants another try, and tools that a provider runs look at a world that changes. `store` and
# `background` leave something behind that a hit would not.
NOT_DETERMINISTIC = ("tools", "functions", "web_search_options", "plugins", "store", "background", "mcp_servers")
# How the answer to a chat ends when it is whole, in the words of each dialect.
WHOLE_ENDS = frozenset({"stop", "length", "end_turn", "stop_sequence", "max_tokens"})


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client's `Cache-Control` lets us do (RFC 9111 §5.2.1)."""

    may_read: bool = True
    may_keep: bool = True


def wish_of(cache_control: Iterable[str]) -> Wish:
    """From all values of the header: `no-store` rules out both, `no-cache` and `max-age=0` reading."""
    words = {word.strip().lower().replace(" ", "") for value in cache_control for word in value.split(",")}
    if "no-store" in words:
        return Wish(may_read=False, may_keep=False)
    return Wish(may_read=not words & {"no-cache", "max-age=0"})


def may_ask(path: str, *, embeddings: bool, deterministic: bool) -> bool:
    """Whether requests to this path can be kept at all."""
    return (embeddings and path in VECTORS) or (deterministic and path in CHATS)


def is_repeatable(path: str, body: Mapping[str, Any]) -> bool:
    """Whether the answer to this body is the same every time, as far as can be told."""
    if (needed := VECTORS.get(path)) is not None:
        return any(body.get(name) for name in needed) and not body.get("stream")
    if path not in CHATS:
        return False
    filled, inside, streams = CHATS[path]
    if not body.get(filled):
        return False
    where = body if inside is None else body.get(inside)
    if not isinstance(where, dict) or not _is_zero(where.get("temperature")):
        return False
    if body.get("stream", streams) is not False or any(body.get(name) for name in NOT_DETERMINISTIC):
        return False
    return all(body.get(name) in (None, 1) for name in ("n", "best_of"))


def _is_zero(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == 0


def is_worth_keeping(path: str, content_type: str, body: bytes) -> bool:
    """Whether the body of a 200 is a whole answer, and not an error in disguise as some providers send."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        return False
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return False
    if isinstance(said, list):
        return bool(said) and path in VECTORS  # some rerankers answer with a bare list
    if not isinstance(said, dict) or said.get("error"):
        return False
    if path in VECTORS:  # an empty list, and a word of why there is none, would be kept for as long as the real answer
        return any(isinstance(said.get(name), list) and said[name] for name in RESULTS)
    return _has_whole_end(said)


def _has_whole_end(said: Mapping[str, Any]) -> bool:
    choices = said.get("choices")
    if isinstance(choices, list):
        return bool(choices) and all(
            isinstance(choice, dict) and _is_end(choice.get("finish_reason")) and not choice.get("error")
            for choice in choices
        )
    return _is_end(said.get("stop_reason", said.get("done_reason"))) and said.get("done", True) is True


def _is_end(reason: Any) -> bool:
    return isinstance(reason, str) and reason in WHOLE_ENDS
