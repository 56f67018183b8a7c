"""Engines that speak only Anthropic: requests of the hub for them, and their answers and streams for the hub."""

from __future__ import annotations

from enginerouter.dialects import openai
from enginerouter.dialects.base import Asked, OddAnswer, Times
from enginerouter.dialects.event_reader import EventReader
from enginerouter.dialects.reading import (
    Json,
    arguments_of,
    compact,
    count_of,
    dict_of,
    dicts_of,
    needed,
    number,
    objects,
    optional,
    text_of,
    texts,
    whole,
)
from enginerouter.errors import BadRequest, printable

# Anthropic wants a limit; OpenAI clients often give none.
DEFAULT_MAX_TOKENS = 4096

_TAKEN = {"messages", "max_tokens", "max_completion_tokens", "stop", "tools", "tool_choice", "parallel_tool_calls",
          "response_format", "reasoning_effort", "chat_template_kwargs", "enable_thinking", "user", "stream_options",
          "n", "logit_bias", "logprobs", "top_logprobs", "presence_penalty", "frequency_penalty", "seed", "store",
          "service_tier", "thinking_budget_tokens", "metadata", "min_p", "typical_p", "repeat_penalty",
          "repetition_penalty", "repeat_last_n"}  # fmt: skip
_REASONS = {"max_tokens": "length", "model_context_window_exceeded": "length", "tool_use": "tool_calls",
            "refusal": "content_filter"}  # fmt: skip


def from_hub(body: Json) -> Json:
    """The body for /v1/messages. Raises BadRequest that names the field."""
    said = {k: v for k, v in body.items() if k not in _TAKEN and v is not None}
    for key in ("temperature", "top_p"):
        number(body, key)
    limit = whole(body, "max_completion_tokens") or whole(body, "max_tokens") or DEFAULT_MAX_TOKENS
    said["max_tokens"] = limit if limit > 0 else DEFAULT_MAX_TOKENS
    said["stream"] = optional(body, "stream", bool) is True
    system, said["messages"] = _messages(objects(body.get("messages"), "messages"))
    if system:
        said["system"] = system
    if stop := texts(body.get("stop"), "stop"):
        said["stop_sequences"] = stop
    if tools := [_tool(t, f"tools[{i}].") for i, t in enumerate(objects(body.get("tools"), "tools"))]:
        said["tools"] = tools
        if choice := _tool_choice(body):
            said["tool_choice"] = choice
    output: Json = {}
    if form := _format(body):
        output["format"] = form
    if (effort := optional(body, "reasoning_effort", str)) not in (None, "none"):
        output["effort"] = effort
    if output:
        said["output_config"] = output
    wanted = (optional(body, "chat_template_kwargs", dict) or {}).get("enable_thinking", body.get("enable_thinking"))
    if effort == "none" or wanted is False:
        said["thinking"] = {"type": "disabled"}
    elif wanted is True:
        said["thinking"] = {"type": "adaptive"}
    if user := optional(body, "user", str):
        said["metadata"] = {"user_id": user}
    return said


def _tool(tool: Json, at: str) -> Json:
    function = needed(tool, "function", dict, at)
    at = f"{at}function."
    made: Json = {"name": needed(function, "name", str, at)}
    if description := optional(function, "description", str, at):
        made["description"] = description
    made["input_schema"] = optional(function, "parameters", dict, at) or {"type": "object", "properties": {}}
    return made


def _tool_choice(body: Json) -> Json | None:
    choice = body.get("tool_choice")
    made: Json | None = None
    if isinstance(choice, dict):
        function = needed(choice, "function", dict, "tool_choice.")
        made = {"type": "tool", "name": needed(function, "name", str, "tool_choice.function.")}
    elif choice is not None:
        words = {"auto": "auto", "required": "any", "none": "none"}
        if not isinstance(choice, str) or choice not in words:
            raise BadRequest("'tool_choice' must be auto, required, none or the name of a function")
        made = {"type": words[choice]}
    if optional(body, "parallel_tool_calls", bool) is False:
        made = made or {"type": "auto"}
        if made["type"] != "none":
            made["disable_parallel_tool_use"] = True
    return made


def _format(body: Json) -> Json | None:
    form = optional(body, "response_format", dict) or {}
    if form.get("type") == "json_object":
        raise BadRequest("'response_format' must have a schema for this engine: use type json_schema")
    if form.get("type") != "json_schema":
        return None
    schema = needed(form, "json_schema", dict, "response_format.")
    return {"type": "json_schema", "schema": needed(schema, "schema", dict, "response_format.json_schema.")}


def _messages(given: list[Json]) -> tuple[str, list[Json]]:
    """The system text, and the turns: results of tools and what a user says after them are one turn."""
    system: list[str] = []
    turns: list[Json] = []
    for index, message in enumerate(given):
        at = f"messages[{index}]."
        role = needed(message, "role", str, at)
        if role in ("system", "developer"):
            system += [b["text"] for b in _blocks(message.get("content"), at) if b["type"] == "text"]
            continue
        if role in ("tool", "function"):
            tool_id = optional(message, "tool_call_id", str, at) or optional(message, "name", str, at) or ""
            content = _blocks(message.get("content"), at)
            blocks: list[Json] = [{"type": "tool_result", "tool_use_id": tool_id, "content": content}]
        else:
            blocks = _blocks(message.get("content"), at)
            for i, call in enumerate(objects(message.get("tool_calls"), f"{at}tool_calls")):
                blocks.append(_tool_use(call, f"{at}tool_calls[{i}]."))
        side = "assistant" if role == "assistant" else "user"
        if turns and turns[-1]["role"] == side:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": side, "content": blocks})
    return "\n\n".join(system), turns


def _tool_use(call: Json, at: str) -> Json:
    function = needed(call, "function", dict, at)
    name = needed(function, "name", str, f"{at}function.")
    call_id = needed(call, "id", str, at)
    return {"type": "tool_use", "id": call_id, "name": name, "input": arguments_of(function.get("arguments"))}


def _blocks(content: object, at: str) -> list[Json]:
    if content is None or content == "":
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    made: list[Json] = []
    for index, part in enumerate(objects(content, f"{at}content")):
        place = f"{at}content[{index}]."
        kind = needed(part, "type", str, place)
        if kind in ("text", "refusal"):
            made.append({"type": "text", "text": needed(part, kind, str, place)})
        elif kind == "image_url":
            image = part.get("image_url")
            url = image if isinstance(image, str) else needed(needed(part, "image_url", dict, place), "url", str, place)
            made.append({"type": "image", "source": _source(url, place)})
        else:
            raise BadRequest(f"'{place}type' is {printable(kind)!r}, which this engine does not take")
    return made


def _source(url: str, at: str) -> Json:
    if not url.startswith("data:"):
        return {"type": "url", "url": url}
    head, _, data = url.removeprefix("data:").partition(",")
    if not head.endswith(";base64") or not data:
        raise BadRequest(f"'{at}image_url' must be a data URL in base64, or a URL")
    return {"type": "base64", "media_type": head.removesuffix(";base64") or "image/png", "data": data}


# --- answers


def to_hub(asked: Asked, said: Json, times: Times) -> Json:
    """A whole answer of Anthropic as one of OpenAI. Raises OddAnswer."""
    if not isinstance(said.get("content"), list):
        raise OddAnswer("it holds no content")
    text: list[str] = []
    thinking: list[str] = []
    calls: list[Json] = []
    for block in dicts_of(said["content"]):
        kind = block.get("type")
        if kind == "text":
            text.append(text_of(block.get("text")))
        elif kind == "thinking":
            thinking.append(text_of(block.get("thinking")))
        elif kind == "tool_use":
            function = {"name": text_of(block.get("name")), "arguments": compact(dict_of(block.get("input")))}
            call_id = text_of(block.get("id")) or f"call_{asked.answer_id}_{len(calls)}"
            calls.append({"id": call_id, "type": "function", "function": function})
    message: Json = {"role": "assistant", "content": "".join(text) or (None if calls else "")}
    if thinking:
        message["reasoning_content"] = "\n".join(thinking)
    if calls:
        message["tool_calls"] = calls
    choice: Json = {"index": 0, "message": message, "finish_reason": _reason(said.get("stop_reason")), "logprobs": None}
    _add_stop_word(choice, said)
    return {
        "id": openai.id_of(asked),
        "object": "chat.completion",
        "created": int(times.began_utc),
        "model": text_of(said.get("model")) or asked.model,
        "choices": [choice],
        "usage": _usage(dict_of(said.get("usage"))),
    }


def _reason(said: object) -> str:
    return _REASONS.get(said, "stop") if isinstance(said, str) else "stop"


def _add_stop_word(choice: Json, said: Json) -> None:
    if word := text_of(said.get("stop_sequence")):
        choice["stop_reason"] = word  # as vLLM says it


def _usage(said: Json) -> Json:
    cached = count_of(said.get("cache_read_input_tokens")) or 0
    written = count_of(said.get("cache_creation_input_tokens")) or 0
    prompt = (count_of(said.get("input_tokens")) or 0) + cached + written
    completion = count_of(said.get("output_tokens")) or 0
    usage: Json = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    if cached:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    return usage


class AnthropicReader(EventReader):
    """The events of /v1/messages."""

    __slots__ = ("_calls", "_usage")

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        # The index of each block that is a tool call, and which call it is.
        self._calls: dict[str, int] = {}
        self._usage: Json = {}

    def _of(self, said: Json) -> list[Json]:
        kind = said.get("type")
        if kind == "content_block_delta":
            return self._delta(said.get("index"), dict_of(said.get("delta")))
        if kind == "message_start":
            message = dict_of(said.get("message"))
            self._model = text_of(message.get("model")) or self._model
            self._usage |= dict_of(message.get("usage"))
            return [self._chunk({"role": "assistant", "content": ""})]
        if kind == "content_block_start":
            return self._start(said.get("index"), dict_of(said.get("content_block")))
        if kind == "message_delta":
            self._usage |= {k: v for k, v in dict_of(said.get("usage")).items() if v is not None}
            delta = dict_of(said.get("delta"))
            choice: Json = {"index": 0, "delta": {}, "finish_reason": _reason(delta.get("stop_reason"))}
            _add_stop_word(choice, delta)
            end: Json = {"model": self._model, "choices": [choice]}
            return [end, {"model": self._model, "choices": [], "usage": _usage(self._usage)}]
        self.has_ended = kind == "message_stop"
        return []

    def _start(self, index: object, block: Json) -> list[Json]:
        if block.get("type") == "tool_use":
            number = self._calls[str(index)] = len(self._calls)
            function = {"name": text_of(block.get("name")), "arguments": ""}
            if given := dict_of(block.get("input")):
                function["arguments"] = compact(given)
            call = {"index": number, "id": text_of(block.get("id")), "type": "function", "function": function}
            return [self._chunk({"tool_calls": [call]})]
        if text := text_of(block.get("text")):
            return [self._chunk({"content": text})]
        return []

    def _delta(self, index: object, delta: Json) -> list[Json]:
        kind = delta.get("type")
        if kind == "text_delta":
            return [self._chunk({"content": text_of(delta.get("text"))})]
        if kind == "thinking_delta":
            return [self._chunk({"reasoning_content": text_of(delta.get("thinking"))})]
        if kind == "input_json_delta" and (number := self._calls.get(str(index))) is not None:
            function = {"arguments": text_of(delta.get("partial_json"))}
            return [self._chunk({"tool_calls": [{"index": number, "function": function}]})]
        return []

    def _chunk(self, delta: Json) -> Json:
        return {"model": self._model, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
