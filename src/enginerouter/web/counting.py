"""How many tokens a prompt has, where its engine is resident and can tell. Nothing is loaded to find out."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
from aiohttp import hdrs
from multidict import CIMultiDict

from enginerouter.dialects import anthropic
from enginerouter.dialects.reading import Json, compact, count_of
from enginerouter.dialects.translation import ANTHROPIC, plan
from enginerouter.errors import RouterError
from enginerouter.proxy.headers import request_headers
from enginerouter.proxy.upstream import ReusedConnectionFailed, Upstream
from enginerouter.routing.target import Target
from enginerouter.web.ask import Ask
from enginerouter.web.edge import EdgeCall
from enginerouter.web.surroundings import Surroundings

TOKENIZE = "/tokenize"
# An estimate now is worth more than a count later.
PATIENCE_S = 5.0
ANSWER_BYTES = 1 << 20


async def counted(around: Surroundings, call: EdgeCall, ask: Ask, target: Target, *, is_remote: bool) -> int | None:
    """The tokens of a Messages request by the engine's own count; None if it is not resident, or does not tell.

    It is asked for `count_tokens`, which llama.cpp and vLLM have as well, then for vLLM's `/tokenize` of a chat. Remote
    engines are only asked what they are said to speak.
    """
    upstream = around.upstreams[target.engine]
    speaks_it = ANTHROPIC.name in upstream.dialects
    if is_remote and not speaks_it:
        return None
    # No await between the lease and its use.
    lease = around.coordinator.lease_beside(target.slot)
    if lease is None:
        return None
    headers = request_headers(call.request.headers, upstream.headers)
    headers[hdrs.CONTENT_TYPE] = "application/json"
    address = around.addresses[target.slot]
    body = {**ask.json, "model": target.upstream_model}
    try:
        with lease:
            async with asyncio.timeout(PATIENCE_S):
                said = await _said(upstream, address, anthropic.COUNT_TOKENS, headers, body)
                if (count := count_of(said.get("input_tokens"))) is not None or speaks_it or is_remote:
                    return count
                said = await _said(upstream, address, TOKENIZE, headers, _as_chat(ask, target))
                return count_of(said.get("count"))
    except (RouterError, ReusedConnectionFailed, TimeoutError, aiohttp.ClientError, ConnectionError):
        return None


def _as_chat(ask: Ask, target: Target) -> Json:
    """Raises BadRequest for what the hub cannot say."""
    # A count needs no limit of tokens, a message does.
    planned = plan(ANTHROPIC, anthropic.MESSAGES, {"max_tokens": 1, **ask.json}, ("openai",), answer_id="")
    assert planned is not None
    chat: Json = {k: planned.body[k] for k in ("messages", "tools") if k in planned.body}
    return {"model": target.upstream_model, **chat, "add_generation_prompt": True}


async def _said(upstream: Upstream, address: str, path: str, headers: CIMultiDict[str], body: Json) -> Json:
    """The JSON object of a 200; {} for anything else."""
    answer = await upstream.open("POST", address, path, headers.copy(), compact(body).encode())
    try:
        raw = await answer.content.read(ANSWER_BYTES) if answer.status == 200 else b""
        while answer.status == 200 and not answer.content.at_eof() and len(raw) < ANSWER_BYTES:
            raw += await answer.content.read(ANSWER_BYTES - len(raw))
        said: Any = json.loads(raw) if raw else {}
    except (ValueError, RecursionError):
        said = {}
    finally:
        answer.release() if answer.content.at_eof() else answer.close()
    return said if isinstance(said, dict) else {}
