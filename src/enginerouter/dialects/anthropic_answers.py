"""Answers of the hub as answers to Anthropic clients: whole ones, and streams in the exact order of their events."""

from __future__ import annotations

from typing import Literal

from enginerouter.dialects.base import Asked, Times, Usage, first_choice, thinking_of, usage_of, words_of
from enginerouter.dialects.reading import Json, arguments_of, compact, dict_of, dicts_of, text_of
from enginerouter.dialects.tool_calls import ToolCall, ToolCalls

_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


def from_hub(asked: Asked, said: Json) -> Json:
    """A whole answer. Raises OddAnswer."""
    choice = first_choice(said)
    message = dict_of(choice.get("message"))
    content: list[Json] = []
    if thinking := thinking_of(message):
        content.append({"type": "thinking", "thinking": thinking, "signature": ""})
    if text := words_of(message):
        content.append({"type": "text", "text": text})
    for index, call in enumerate(dicts_of(message.get("tool_calls"))):
        function = dict_of(call.get("function"))
        tool_id = text_of(call.get("id")) or f"toolu_{asked.answer_id}_{index}"
        arguments = arguments_of(function.get("arguments"))
        content.append({"type": "tool_use", "id": tool_id, "name": text_of(function.get("name")), "input": arguments})
    has_calls = any(block["type"] == "tool_use" for block in content)
    return {
        "id": f"msg_{text_of(said.get('id')).removeprefix('chatcmpl-') or asked.answer_id}",
        "type": "message",
        "role": "assistant",
        "model": text_of(said.get("model")) or asked.model,
        "content": content,
        **_stop(choice.get("finish_reason"), _stop_word(choice, said), has_calls=has_calls),
        "usage": _usage(usage_of(said)),
    }


def _stop_word(choice: Json, said: Json) -> str | None:
    """The stop string that ended the answer, where the engine tells: vLLM and llama.cpp, each in its own way."""
    for word in (choice.get("stop_reason"), choice.get("stopping_word"), said.get("stopping_word")):
        if isinstance(word, str) and word:
            return word
    return None


def _stop(reason: object, word: str | None, *, has_calls: bool) -> Json:
    if reason == "stop" and word is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": word}
    if reason == "stop" and has_calls:
        return {"stop_reason": "tool_use", "stop_sequence": None}  # engines that call every end a stop
    return {"stop_reason": _REASONS.get(reason, "end_turn") if isinstance(reason, str) else "end_turn",
            "stop_sequence": None}  # fmt: skip


def _usage(used: Usage | None) -> Json:
    """Anthropic counts what was read from the cache apart."""
    used = used or Usage()
    cached = min(used.cached or 0, used.prompt or 0)
    return {
        "input_tokens": (used.prompt or 0) - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": used.completion or 0,
    }


# --- streams


class _Block:
    """A content block that is open, or waits until the one before it is closed. `held` is what was not sent of it."""

    __slots__ = ("call", "held", "kind")

    def __init__(self, kind: Literal["text", "thinking", "tool_use"], call: ToolCall | None = None) -> None:
        self.kind = kind
        self.call = call
        self.held: list[str] = []

    def may_close(self) -> bool:
        return self.call is None or self.call.is_complete()


_DELTAS = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking"),
           "tool_use": ("input_json_delta", "partial_json")}  # fmt: skip


class AnthropicWriter:
    """The events of /v1/messages.

    One block is open at a time. What belongs to another one closes it, unless it is a tool call whose arguments are
    not whole yet: then the other waits its turn (OpenAI's parallel calls may come in turns).
    """

    __slots__ = ("_asked", "_calls", "_has_begun", "_index", "_model", "_open", "_reason", "_start", "_waiting",
                 "_word", "has_finish", "usage")  # fmt: skip

    def __init__(self, asked: Asked, times: Times) -> None:
        self._asked = asked
        self._has_begun = False
        self._index = -1
        self._open: _Block | None = None
        # The beginning of a delta of the open block, up to its text.
        self._start = ""
        self._waiting: list[_Block] = []
        self._calls = ToolCalls()
        self._model = asked.model
        self._reason: object = None
        self._word: str | None = None
        self.has_finish = False
        self.usage: Usage | None = None

    def write(self, chunk: Json, now: float) -> bytes:
        if "usage" in chunk or "timings" in chunk or "x_groq" in chunk:
            self.usage = usage_of(chunk, self.usage)
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict) or choice.get("index"):
            return b""
        out = "" if self._has_begun else self._begin(chunk)
        delta = choice.get("delta")
        if isinstance(delta, dict):
            if thinking := thinking_of(delta):
                out += self._add("thinking", thinking)
            if text := words_of(delta):
                out += self._add("text", text)
            if "tool_calls" in delta:
                for piece in dicts_of(delta["tool_calls"]):
                    out += self._add_call(piece)
        if reason := choice.get("finish_reason"):
            self._reason, self.has_finish = reason, True
            self._word = _stop_word(choice, chunk)
        return out.encode()

    def _begin(self, chunk: Json) -> str:
        self._has_begun = True
        self._model = text_of(chunk.get("model")) or self._model
        # The counts come last; until then an estimate stands, and the last event says what is true.
        used = self.usage if self.usage is not None and self.usage.prompt else Usage(prompt=self._asked.prompt_tokens)
        message: Json = {
            "id": f"msg_{self._asked.answer_id}",
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self._model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**_usage(used), "output_tokens": 0},
        }
        return _event({"type": "message_start", "message": message})

    def _add(self, kind: Literal["text", "thinking"], text: str) -> str:
        if not self._waiting and self._open is not None and self._open.kind == kind:
            return self._delta(text)
        if not (self._waiting and self._waiting[-1].kind == kind):
            self._waiting.append(_Block(kind))
        self._waiting[-1].held.append(text)
        return self._advance()

    def _add_call(self, piece: Json) -> str:
        known = len(self._calls)
        call = self._calls.of(piece)
        text = call.add(piece)
        if len(self._calls) > known:
            block = _Block("tool_use", call)
            if text:
                block.held.append(text)
            self._waiting.append(block)
            return self._advance()
        if self._open is not None and self._open.call is call:
            return self._delta(text) if text else ""
        for block in self._waiting:
            if block.call is call:
                if text:
                    block.held.append(text)
                return self._advance() if block is self._waiting[0] else ""
        return ""

    def _advance(self, *, is_end: bool = False) -> str:
        """Open what waits, as far as what is open may be closed."""
        out = ""
        while self._waiting:
            if self._open is not None and not (is_end or self._open.may_close()):
                break
            waiting = self._waiting[0]
            if waiting.call is not None and not waiting.call.name and not is_end:
                break  # its name is needed to open it
            out += self._close()
            out += self._open_block(self._waiting.pop(0))
        return out

    def _open_block(self, block: _Block) -> str:
        self._index += 1
        self._open = block
        if block.call is not None:
            call = block.call
            call.id = call.id or f"toolu_{self._asked.answer_id}_{self._index}"
            content: Json = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        elif block.kind == "thinking":
            content = {"type": "thinking", "thinking": "", "signature": ""}
        else:
            content = {"type": "text", "text": ""}
        kind, member = _DELTAS[block.kind]
        head = f'{{"type":"content_block_delta","index":{self._index},"delta":{{"type":"{kind}","{member}":'
        self._start = f"event: content_block_delta\ndata: {head}"
        out = _event({"type": "content_block_start", "index": self._index, "content_block": content})
        if block.held:
            out += self._delta("".join(block.held))
            block.held.clear()
        return out

    def _delta(self, text: str) -> str:
        return f"{self._start}{compact(text)}}}}}\n\n"

    def _close(self) -> str:
        block, self._open = self._open, None
        if block is None:
            return ""
        out = ""
        if block.kind == "thinking":
            signature = {"type": "signature_delta", "signature": ""}
            out = _event({"type": "content_block_delta", "index": self._index, "delta": signature})
        return out + _event({"type": "content_block_stop", "index": self._index})

    def finish(self, now: float) -> bytes:
        out = "" if self._has_begun else self._begin({})
        out += self._advance(is_end=True) + self._close()
        stop = _stop(self._reason, self._word, has_calls=len(self._calls) > 0)
        usage = _usage(self.usage or Usage(prompt=self._asked.prompt_tokens))
        out += _event({"type": "message_delta", "delta": stop, "usage": usage})
        return (out + _event({"type": "message_stop"})).encode()


def _event(event: Json) -> str:
    return f"event: {event['type']}\ndata: {compact(event)}\n\n"
