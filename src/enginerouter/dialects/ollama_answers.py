"""Answers of the hub as answers to Ollama clients: whole ones, embeddings, and streams of lines."""

from __future__ import annotations

import base64
import binascii
import math
import struct

from enginerouter.dialects import ollama
from enginerouter.dialects.base import Asked, OddAnswer, Times, Usage, first_choice, thinking_of, usage_of, words_of
from enginerouter.dialects.reading import Json, arguments_of, compact, dict_of, dicts_of, text_of
from enginerouter.dialects.tool_calls import ToolCalls


def from_hub(asked: Asked, said: Json, times: Times, now: float) -> Json:
    """A whole answer. Raises OddAnswer."""
    if asked.path in (ollama.EMBED, ollama.EMBEDDINGS):
        return _embeddings(asked, said, times, now)
    choice = first_choice(said)
    message = dict_of(choice.get("message"))
    text = words_of(message) or text_of(choice.get("text"))
    answer: Json = {
        "model": text_of(said.get("model")) or asked.model,
        "created_at": ollama.rfc3339(times.began_utc + now - times.began_at),
    }
    calls = [_call(i, c) for i, c in enumerate(dicts_of(message.get("tool_calls")))]
    answer |= _body(asked.path, text, thinking_of(message), calls)
    if logprobs := _logprobs(choice.get("logprobs")):
        answer["logprobs"] = logprobs
    return answer | _end(choice.get("finish_reason"), usage_of(said), times, None, now)


def _call(index: int, call: Json) -> Json:
    function = dict_of(call.get("function"))
    said: Json = {"id": text_of(call.get("id"))} if text_of(call.get("id")) else {}
    arguments = arguments_of(function.get("arguments"))
    said["function"] = {"index": index, "name": text_of(function.get("name")), "arguments": arguments}
    return said


def _body(path: str, text: str, thinking: str, calls: list[Json]) -> Json:
    extra: Json = {"thinking": thinking} if thinking else {}
    if calls:
        extra["tool_calls"] = calls
    if path == ollama.GENERATE:
        return {"response": text, **extra}
    return {"message": {"role": "assistant", "content": text, **extra}}


def _end(reason: object, usage: Usage | None, times: Times, first_at: float | None, now: float) -> Json:
    """`done` and the figures. `first_at` is when the first of the answer came; None where nobody saw it.

    The engine's own clock counts where it has one. Else reading the prompt took until the first of the answer, and
    writing took the rest. Where that says nothing – a whole answer, or one that came in one piece – both took the whole
    time, so that rates made of it are too low rather than invented.
    """
    used = usage or Usage()
    total_s = max(0.0, now - times.began_at)
    busy_s = max(0.0, total_s - times.load_s)
    read_s = 0.0 if first_at is None else min(busy_s, max(0.0, first_at - times.began_at - times.load_s))
    write_s = busy_s - read_s
    if first_at is None or write_s <= 0:
        read_s = write_s = busy_s
    end: Json = {
        "done": True,
        "done_reason": "length" if reason == "length" else "stop",
        "total_duration": ollama.ns(total_s),
        "load_duration": round(times.load_s * 1e9),
    }
    if used.prompt is not None:
        end["prompt_eval_count"] = used.prompt
        end["prompt_eval_duration"] = ollama.ns(used.prompt_s or read_s)
    if used.completion is not None:
        end["eval_count"] = used.completion
        end["eval_duration"] = ollama.ns(used.completion_s or write_s)
    return end


def _logprobs(said: object) -> list[Json]:
    """Those of a chat as they are; those of /v1/completions, which are lists side by side, one by one."""
    logprobs = dict_of(said)
    if content := dicts_of(logprobs.get("content")):
        return content
    tokens, values = logprobs.get("tokens"), logprobs.get("token_logprobs")
    tops = logprobs.get("top_logprobs")
    if not isinstance(tokens, list) or not isinstance(values, list):
        return []
    found: list[Json] = []
    for index, (token, value) in enumerate(zip(tokens, values, strict=False)):
        one: Json = {"token": token, "logprob": value}
        top = dict_of(tops[index]) if isinstance(tops, list) and index < len(tops) else {}
        if top:
            one["top_logprobs"] = [{"token": t, "logprob": p} for t, p in top.items()]
        found.append(one)
    return found


# --- embeddings


def _embeddings(asked: Asked, said: Json, times: Times, now: float) -> Json:
    vectors = vectors_of(said)
    if asked.path == ollama.EMBEDDINGS:
        return {"embedding": vectors[0] if vectors else []}
    answer: Json = {
        "model": text_of(said.get("model")) or asked.model,
        "embeddings": [_unit(v) for v in vectors],
        "total_duration": ollama.ns(now - times.began_at),
        "load_duration": round(times.load_s * 1e9),
    }
    usage = usage_of(said)
    if usage is not None and usage.prompt is not None:
        answer["prompt_eval_count"] = usage.prompt
    return answer


def vectors_of(said: Json) -> list[list[float]]:
    """The vectors of an OpenAI embeddings answer in order, float or base64. Raises OddAnswer."""
    if not isinstance(said.get("data"), list):
        raise OddAnswer("it holds no embeddings")
    data = dicts_of(said["data"])
    if all(type(d.get("index")) is int for d in data):
        data.sort(key=lambda d: d["index"])
    return [_vector(d.get("embedding")) for d in data]


def _vector(said: object) -> list[float]:
    if isinstance(said, str):
        try:
            raw = base64.b64decode(said, validate=True)
        except (binascii.Error, ValueError) as error:
            raise OddAnswer("an embedding is no base64") from error
        if len(raw) % 4:
            raise OddAnswer("an embedding is no list of 32-bit floats")
        said = list(struct.unpack(f"<{len(raw) // 4}f", raw))
    if not isinstance(said, list) or not all(type(x) in (float, int) for x in said):
        raise OddAnswer("an embedding is no list of numbers")
    if not all(-1e300 < x < 1e300 for x in said):
        raise OddAnswer("an embedding holds what is no finite number")
    return said


def _unit(vector: list[float]) -> list[float]:
    length = math.hypot(*vector)
    return [x / length for x in vector] if length > 0 else vector


# --- streams


class OllamaWriter:
    """The lines of /api/chat or /api/generate.

    Deltas become lines at once; tool calls are collected until the answer ends, because Ollama's are whole; the last
    line waits for the counts, which follow the finish reason.
    """

    __slots__ = (
        "_after",
        "_asked",
        "_before",
        "_calls",
        "_first_at",
        "_head",
        "_reason",
        "_times",
        "has_finish",
        "usage",
    )

    def __init__(self, asked: Asked, times: Times) -> None:
        self._asked = asked
        self._times = times
        self._head = ollama.LineHead(asked.model, times.began_at, times.began_utc)
        is_generate = asked.path == ollama.GENERATE
        self._before = ',"response":' if is_generate else ',"message":{"role":"assistant","content":'
        self._after = ',"done":false}\n' if is_generate else '},"done":false}\n'
        self._calls = ToolCalls()
        self._first_at: float | None = None
        self._reason: object = None
        self.has_finish = False
        self.usage: Usage | None = None

    def write(self, chunk: Json, now: float) -> bytes:
        if "usage" in chunk or "timings" in chunk or "x_groq" in chunk:
            self.usage = usage_of(chunk, self.usage)
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict) or choice.get("index"):
            return b""
        if (model := chunk.get("model")) != self._head.model and isinstance(model, str) and model:
            self._head.model = model
        if reason := choice.get("finish_reason"):
            self._reason, self.has_finish = reason, True
        return self._line(choice, now)

    def _line(self, choice: Json, now: float) -> bytes:
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            delta = {}
        text, thinking = words_of(delta) or text_of(choice.get("text")), thinking_of(delta)
        if "tool_calls" in delta:
            for call in dicts_of(delta["tool_calls"]):
                self._calls.add(call)
            self._first_at = self._first_at or now
        if not thinking and not text:
            return b""
        self._first_at = self._first_at or now
        written = compact(text)
        if thinking:
            written += f',"thinking":{compact(thinking)}'
        after = self._after
        if choice.get("logprobs") and (logprobs := _logprobs(choice["logprobs"])):
            after = after.replace(',"done"', f',"logprobs":{compact(logprobs)},"done"')
        return f"{self._head.at(now)}{self._before}{written}{after}".encode()

    def finish(self, now: float) -> bytes:
        out = b""
        if len(self._calls):
            calls = [_call(i, c.whole()) for i, c in enumerate(self._calls.in_order())]
            out = f'{self._head.at(now)}{self._before}"","tool_calls":{compact(calls)}{self._after}'.encode()
        end = _end(self._reason, self.usage, self._times, self._first_at, now)
        return out + f'{self._head.at(now)}{self._before}""{self._after[:-15]},{compact(end)[1:]}\n'.encode()
