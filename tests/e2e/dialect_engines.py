"""Scripted engines that speak one dialect each, as a good one does: OpenAI (like vLLM), Ollama, Anthropic.

They say who they are and what they understood: `kind` of the answer by what was asked (tools, a schema, a picture),
always the same words, so that what reaches a client can be compared whatever was translated on its way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from engine_server import Received, Script, Step, chunked, head, ok, sse

WORDS = ("Grüße", " an", " alle", " \u2028 da draußen")
THOUGHT = "Hm, höflich sein."
CALL: dict[str, Any] = {"name": "weather", "arguments": {"city": "Köln"}}
SHAPED = {"answer": 42}
VECTOR = [0.6, -0.8]
TOKENS_IN, TOKENS_OUT = 11, 4
PICTURE = "iVBORw0KGgo="
NDJSON_HEAD = head(200, [("Content-Type", "application/x-ndjson"), ("Transfer-Encoding", "chunked")])
Asked = dict[str, Any]


def error(status: int, message: str) -> Callable[[str], Script]:
    """An error answer, in the words of the dialect."""

    def said(dialect: str) -> Script:
        inner = {"message": message, "type": "some_error", "param": None, "code": status}
        body: dict[str, Any] = {
            "openai": {"error": inner},
            "ollama": {"error": message},
            "anthropic": {"type": "error", "error": {"type": "api_error", "message": message}},
        }[dialect]
        return ok(json.dumps(body).encode(), status=status)

    return said


def kind_of(asked: Asked, *, has_picture: bool, has_schema: bool) -> str:
    if has_schema:
        return "schema"
    if asked.get("tools"):
        return "tools"
    return "picture" if has_picture else "words"


def words_of(kind: str, model: str) -> Sequence[str]:
    if kind == "schema":
        return (json.dumps(SHAPED),)
    return ("seen",) if kind == "picture" else (f"{model}: ", *WORDS)


# --- OpenAI


def openai_engine(received: Received) -> Script:
    path, asked = received.target.partition("?")[0], received.json
    if path == "/v1/embeddings":
        given = _inputs(asked)
        data = [{"object": "embedding", "index": i, "embedding": VECTOR} for i, _ in enumerate(given)]
        usage = {"prompt_tokens": TOKENS_IN, "total_tokens": TOKENS_IN}
        return _json({"object": "list", "model": asked["model"], "data": data, "usage": usage})
    if path == "/v1/completions":
        return _openai_completion(asked)
    if path != "/v1/chat/completions":
        return error(404, f"no {path}")("openai")
    has_picture = PICTURE in json.dumps(asked.get("messages"))
    kind = kind_of(asked, has_picture=has_picture, has_schema="response_format" in asked)
    finish = "tool_calls" if kind == "tools" else "stop"
    usage = {"prompt_tokens": TOKENS_IN, "completion_tokens": TOKENS_OUT, "total_tokens": TOKENS_IN + TOKENS_OUT}
    head_ = {"id": "c1", "created": 1, "model": asked["model"]}
    call = {"index": 0, "id": "call_1", "type": "function", "function": {**CALL, "arguments": _args()}}
    if asked.get("stream") is not True:
        message: Asked = {"role": "assistant", "content": "".join(words_of(kind, asked["model"]))}
        if kind == "tools":
            message = {"role": "assistant", "content": None, "tool_calls": [{k: call[k] for k in call if k != "index"}]}
        elif kind == "words":
            message["reasoning_content"] = THOUGHT
        choice = {"index": 0, "message": message, "finish_reason": finish}
        return _json({**head_, "object": "chat.completion", "choices": [choice], "usage": usage})
    deltas: list[Asked] = [{"role": "assistant", "content": ""}]
    if kind == "tools":
        deltas += [{"tool_calls": [{**call, "function": {"name": "weather", "arguments": ""}}]}]
        deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": p}}]} for p in (_args()[:5], _args()[5:])]
    else:
        deltas += [{"reasoning_content": THOUGHT}] if kind == "words" else []
        deltas += [{"content": word} for word in words_of(kind, asked["model"])]
    choices = [{"index": 0, "delta": d, "finish_reason": None} for d in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": finish})
    chunks = [{**head_, "object": "chat.completion.chunk", "choices": [c]} for c in choices]
    if (asked.get("stream_options") or {}).get("include_usage"):
        chunks.append({**head_, "object": "chat.completion.chunk", "choices": [], "usage": usage})
    return sse(*[_data(c) for c in chunks], b"data: [DONE]\n\n")


def _openai_completion(asked: Asked) -> Script:
    head_ = {"id": "c1", "object": "text_completion", "created": 1, "model": asked["model"]}
    if asked.get("stream") is not True:
        return _json({**head_, "choices": [{"index": 0, "text": "".join(WORDS), "finish_reason": "stop"}]})
    choices: list[Asked] = [{"index": 0, "text": w, "finish_reason": None} for w in WORDS]
    choices.append({"index": 0, "text": "", "finish_reason": "stop"})
    return sse(*[_data({**head_, "choices": [c]}) for c in choices], b"data: [DONE]\n\n")


# --- Ollama


def ollama_engine(received: Received) -> Script:
    path, asked = received.target.partition("?")[0], received.json
    if path in ("/api/embed", "/api/embeddings"):
        if path == "/api/embeddings":
            return _json({"embedding": VECTOR})
        given = _inputs(asked)
        counts = {"total_duration": 5, "load_duration": 1, "prompt_eval_count": TOKENS_IN}
        return _json({"model": asked["model"], "embeddings": [VECTOR for _ in given], **counts})
    if path not in ("/api/chat", "/api/generate"):
        return error(404, f"no {path}")("ollama")
    is_chat = path == "/api/chat"
    has_picture = any(m.get("images") for m in asked.get("messages") or [asked])
    kind = kind_of(asked, has_picture=has_picture, has_schema=bool(asked.get("format")))
    head_ = {"model": asked["model"], "created_at": "2026-11-20T12:00:00.5Z"}
    counts = {"total_duration": 9, "load_duration": 1, "prompt_eval_count": TOKENS_IN, "prompt_eval_duration": 3,
              "eval_count": TOKENS_OUT, "eval_duration": 5_000_000}  # fmt: skip
    end = {"done": True, "done_reason": "stop", **counts}

    def said(content: str = "", **more: Any) -> Asked:
        if is_chat:
            return {"message": {"role": "assistant", "content": content, **more}}
        return {"response": content, **more}

    parts = [said(word) for word in words_of(kind, asked["model"])]
    if kind == "tools":
        parts = [said("", tool_calls=[{"function": CALL}])]
    elif kind == "words":
        parts.insert(0, said("", thinking=THOUGHT))
    if asked.get("stream") is not False:
        lines = [{**head_, **part, "done": False} for part in parts]
        return ndjson(*[_line(line) for line in [*lines, {**head_, **said(), **end}]])
    whole = parts[0] if kind == "tools" else said("".join(words_of(kind, asked["model"])))
    if kind == "words":
        (whole["message"] if is_chat else whole)["thinking"] = THOUGHT
    return _json({**head_, **whole, **end})


def ndjson(*steps: Step, ends: bool = True) -> Script:
    """A stream of lines, in chunks."""
    return [NDJSON_HEAD, *chunked(steps, ends=ends)]


# --- Anthropic


def anthropic_engine(received: Received) -> Script:
    path, asked = received.target.partition("?")[0], received.json
    if path == "/v1/messages/count_tokens":
        return _json({"input_tokens": TOKENS_IN})
    if path != "/v1/messages":
        return error(404, f"no {path}")("anthropic")
    has_picture = PICTURE in json.dumps(asked.get("messages"))
    kind = kind_of(asked, has_picture=has_picture, has_schema="output_config" in asked or "output_format" in asked)
    text = "".join(words_of(kind, asked["model"]))
    blocks: list[Asked] = [{"type": "text", "text": text}]
    if kind == "tools":
        blocks = [{"type": "tool_use", "id": "toolu_1", "name": "weather", "input": CALL["arguments"]}]
    elif kind == "words":
        blocks.insert(0, {"type": "thinking", "thinking": THOUGHT, "signature": "s"})
    stop = "tool_use" if kind == "tools" else "end_turn"
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": asked["model"], "content": blocks,
               "stop_reason": stop, "stop_sequence": None,
               "usage": {"input_tokens": TOKENS_IN, "output_tokens": TOKENS_OUT}}  # fmt: skip
    if asked.get("stream") is not True:
        return _json(message)
    begun = {**message, "content": [], "stop_reason": None, "usage": {"input_tokens": TOKENS_IN, "output_tokens": 1}}
    events: list[Asked] = [{"type": "message_start", "message": begun}]
    for index, block in enumerate(blocks):
        events += _block_events(index, block)
    delta = {"stop_reason": stop, "stop_sequence": None}
    events.append({"type": "message_delta", "delta": delta, "usage": {"output_tokens": TOKENS_OUT}})
    events.append({"type": "message_stop"})
    return sse(*[_event(e) for e in events])


def _block_events(index: int, block: Asked) -> list[Asked]:
    kind = block["type"]
    if kind == "tool_use":
        start, deltas = {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": _args()}]
    elif kind == "thinking":
        start = {"type": "thinking", "thinking": "", "signature": ""}
        deltas = [{"type": "thinking_delta", "thinking": THOUGHT}, {"type": "signature_delta", "signature": "s"}]
    else:
        start, deltas = {"type": "text", "text": ""}, [{"type": "text_delta", "text": block["text"]}]
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *[{"type": "content_block_delta", "index": index, "delta": d} for d in deltas],
        {"type": "content_block_stop", "index": index},
    ]


def _forgiving(dialect: str, engine: Callable[[Received], Script]) -> Callable[[Received], Script]:
    """What makes no sense is the client's mistake."""

    def answer(received: Received) -> Script:
        try:
            return engine(received)
        except (AttributeError, KeyError, TypeError) as odd:
            return error(400, f"cannot read this: {odd}")(dialect)

    return answer


ENGINES: dict[str, Callable[[Received], Script]] = {
    "openai": _forgiving("openai", openai_engine),
    "ollama": _forgiving("ollama", ollama_engine),
    "anthropic": _forgiving("anthropic", anthropic_engine),
}


def _inputs(asked: Asked) -> list[Any]:
    given = asked.get("input")
    return given if isinstance(given, list) else [given]


def _args() -> str:
    return json.dumps(CALL["arguments"], ensure_ascii=False)


def _json(said: Any) -> Script:
    return ok(json.dumps(said, ensure_ascii=False).encode())


def _data(said: Any) -> bytes:
    return b"data: " + json.dumps(said, ensure_ascii=False).encode() + b"\n\n"


def _line(said: Any) -> bytes:
    # As Go writes JSON: ollama-python would take U+2028 for the end of a line.
    return json.dumps(said, ensure_ascii=False).replace("\u2028", "\\u2028").encode() + b"\n"


def _event(said: Asked) -> bytes:
    return f"event: {said['type']}\n".encode() + _data(said)
