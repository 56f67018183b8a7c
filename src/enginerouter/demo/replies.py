"""What the demo engine says, in the shapes of the OpenAI API: plain functions over plain data.

A *token* is a word with the space before it. What cannot be answered raises Refused.
"""

from __future__ import annotations

import base64
import itertools
import random
import struct
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

Json = dict[str, Any]
FinishReason = Literal["stop", "length"]

QUOTE_WORDS = 12
MOST_TOKENS = 1_000_000
DIMENSIONS = 64


class Refused(Exception):
    """The request gets no answer but `status` and `body`, an OpenAI error object."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        kind = "invalid_request_error" if status < 500 else "unavailable_error"
        self.status = status
        self.body: Json = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer before a word of it is said: its words, and what every frame of it repeats."""

    kind: Literal["chat.completion", "text_completion", "response"]
    model: str
    words: list[str]
    finish_reason: FinishReason
    prompt_tokens: int
    include_usage: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:24])
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def text(self) -> str:
        return "".join(self.words)


# --- reading a request -------------------------------------------------------------------------------------


def check_model(body: Json, name: str) -> None:
    """Refuse a request meant for another model, as vLLM does: it was sent to the wrong engine."""
    asked = body.get("model", name)
    if asked != name:
        message = f"The model {asked!r} does not exist here; this engine serves {name!r}."
        raise Refused(404, message, code="model_not_found", param="model")


def chat_answer(body: Json, name: str) -> Answer:
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise Refused(400, "'messages' must be a list of objects.", param="messages")
    asked = [m for m in messages if m.get("role") == "user"]
    prompt = _text_of(asked[-1].get("content")) if asked else ""
    prompt_tokens = sum(len(_text_of(m.get("content")).split()) for m in messages)
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    return _answer("chat.completion", body, name, prompt, prompt_tokens, limit)


def text_answer(body: Json, name: str) -> Answer:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise Refused(400, "'prompt' must be a string.", param="prompt")
    return _answer("text_completion", body, name, prompt, len(prompt.split()), body.get("max_tokens"))


def response_answer(body: Json, name: str) -> Answer:
    given = body.get("input")
    if isinstance(given, list):
        users = [item for item in given if isinstance(item, dict) and item.get("role") == "user"]
        given = _text_of(users[-1].get("content")) if users else ""
    if not isinstance(given, str):
        raise Refused(400, "'input' must be a string or a list of items.", param="input")
    return _answer("response", body, name, given, len(given.split()), body.get("max_output_tokens"))


def _text_of(content: Any) -> str:
    """A message's text, which comes as a string or as typed parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text", "") for part in content if isinstance(part, dict)]
        return " ".join(part for part in parts if isinstance(part, str))
    return ""


def _answer(
    kind: Literal["chat.completion", "text_completion", "response"],
    body: Json,
    name: str,
    prompt: str,
    prompt_tokens: int,
    limit: Any,
) -> Answer:
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise Refused(400, "the limit on tokens must be a whole number of at least 1.", param="max_tokens")
    words = _reply(name, prompt)
    if body.get("ignore_eos") is True and limit is not None:  # as llama.cpp and vLLM have it
        if limit > MOST_TOKENS:
            raise Refused(
                400, f"with 'ignore_eos' the limit on tokens must be at most {MOST_TOKENS}.", param="max_tokens"
            )
        words = list(itertools.islice(itertools.cycle([" " + w.strip() for w in words]), limit))
        words[0] = words[0].strip()
    is_cut = limit is not None and (limit < len(words) or body.get("ignore_eos") is True)
    options = body.get("stream_options")
    return Answer(
        kind=kind,
        model=name,
        words=words[:limit],
        finish_reason="length" if is_cut else "stop",
        prompt_tokens=prompt_tokens,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
    )


def _reply(name: str, prompt: str) -> list[str]:
    said = prompt.split()
    quote = " ".join(said[:QUOTE_WORDS]) + ("…" if len(said) > QUOTE_WORDS else "")
    sentences = [f"This is {name}."]
    if quote:
        sentences.append(f"You said: “{quote}”.")
    sentences.append(
        "I am a demo engine: I understand nothing, but I am a real process, I hold real memory, "
        "and I leave when another engine is asked for."
    )
    first, *rest = " ".join(sentences).split()
    return [first, *(f" {word}" for word in rest)]


# --- writing an answer -------------------------------------------------------------------------------------


def whole(answer: Answer) -> Json:
    """The answer to a request that does not stream."""
    if answer.kind == "response":
        return _response(answer, "completed")
    choice: Json = {"index": 0, "logprobs": None, "finish_reason": answer.finish_reason}
    if answer.kind == "chat.completion":
        choice["message"] = {"role": "assistant", "content": answer.text}
        return _frame(answer, [choice], "chatcmpl-") | {"usage": _usage(answer)}
    choice["text"] = answer.text
    return _frame(answer, [choice], "cmpl-") | {"usage": _usage(answer)}


def frames(answer: Answer) -> Iterator[tuple[Json, bool]]:
    """The events of a stream in order; True marks one that says a word, which takes its time."""
    if answer.kind == "response":
        yield from _response_frames(answer)
    elif answer.kind == "chat.completion":
        yield _chat_chunk(answer, {"role": "assistant", "content": ""}, None), False
        for word in answer.words:
            yield _chat_chunk(answer, {"content": word}, None), True
        yield _chat_chunk(answer, {}, answer.finish_reason), False
    else:
        for i, word in enumerate(answer.words, start=1):
            reason = answer.finish_reason if i == len(answer.words) else None
            choice = {"index": 0, "text": word, "logprobs": None, "finish_reason": reason}
            yield _frame(answer, [choice], "cmpl-"), True
    if answer.include_usage and answer.kind != "response":
        prefix, suffix = ("chatcmpl-", ".chunk") if answer.kind == "chat.completion" else ("cmpl-", "")
        yield _frame(answer, [], prefix, suffix) | {"usage": _usage(answer)}, False


def _frame(answer: Answer, choices: list[Json], id_prefix: str, suffix: str = "") -> Json:
    return {
        "id": id_prefix + answer.id,
        "object": answer.kind + suffix,
        "created": answer.created,
        "model": answer.model,
        "choices": choices,
    }


def _chat_chunk(answer: Answer, delta: Json, finish_reason: FinishReason | None) -> Json:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return _frame(answer, [choice], "chatcmpl-", ".chunk")


def _usage(answer: Answer) -> Json:
    said = len(answer.words)
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": said,
        "total_tokens": answer.prompt_tokens + said,
    }


def _response(answer: Answer, status: Literal["in_progress", "completed"]) -> Json:
    is_done = status == "completed"
    is_cut = is_done and answer.finish_reason == "length"
    said = len(answer.words)
    usage = {
        "input_tokens": answer.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": said,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": answer.prompt_tokens + said,
    }
    return {
        "id": f"resp_{answer.id}",
        "object": "response",
        "created_at": answer.created,
        "status": "incomplete" if is_cut else status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "model": answer.model,
        "output": [_response_item(answer, "completed")] if is_done else [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": usage if is_done else None,
    }


def _response_item(answer: Answer, status: Literal["in_progress", "completed"]) -> Json:
    content = [_response_part(answer.text)] if status == "completed" else []
    return {
        "id": f"msg_{answer.id}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    }


def _response_part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": []}


def _response_frames(answer: Answer) -> Iterator[tuple[Json, bool]]:
    number = itertools.count()

    def event(kind: str, **fields: Any) -> Json:
        return {"type": f"response.{kind}", "sequence_number": next(number), **fields}

    place: Json = {"item_id": f"msg_{answer.id}", "output_index": 0, "content_index": 0}
    yield event("created", response=_response(answer, "in_progress")), False
    yield event("output_item.added", output_index=0, item=_response_item(answer, "in_progress")), False
    yield event("content_part.added", **place, part=_response_part("")), False
    for word in answer.words:
        yield event("output_text.delta", **place, delta=word, logprobs=[]), True
    yield event("output_text.done", **place, text=answer.text, logprobs=[]), False
    yield event("content_part.done", **place, part=_response_part(answer.text)), False
    yield event("output_item.done", output_index=0, item=_response_item(answer, "completed")), False
    last = _response(answer, "completed")
    yield event("incomplete" if last["status"] == "incomplete" else "completed", response=last), False


# --- embeddings --------------------------------------------------------------------------------------------


def embeddings(body: Json, name: str) -> Json:
    """A vector of length 1 per input, always the same for the same input; it means nothing."""
    given = body.get("input")
    if isinstance(given, str) or (isinstance(given, list) and given and isinstance(given[0], int)):
        given = [given]
    if not isinstance(given, list) or not given or not all(isinstance(i, str | list) for i in given):
        raise Refused(400, "'input' must be a string, or a list of strings or of tokens.", param="input")
    dimensions = body.get("dimensions", DIMENSIONS)
    if not isinstance(dimensions, int) or isinstance(dimensions, bool) or not 1 <= dimensions <= 4096:
        raise Refused(400, "'dimensions' must be a whole number from 1 to 4096.", param="dimensions")
    form = body.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise Refused(400, "'encoding_format' must be 'float' or 'base64'.", param="encoding_format")
    vectors = [_vector(str(item), dimensions) for item in given]
    data = [
        {"object": "embedding", "index": i, "embedding": vector if form == "float" else _packed(vector)}
        for i, vector in enumerate(vectors)
    ]
    tokens = sum(len(item.split()) if isinstance(item, str) else len(item) for item in given)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": name, "usage": usage}


def _vector(text: str, dimensions: int) -> list[float]:
    draw = random.Random(text.encode("utf-8", "surrogatepass"))  # a lone surrogate is a text too
    raw = [draw.gauss(0, 1) for _ in range(dimensions)]
    length = sum(x * x for x in raw) ** 0.5
    return [x / length for x in raw]


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
