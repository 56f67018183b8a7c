"""Engines that speak only Ollama: requests of the hub for them, and their answers and streams for the hub."""

from __future__ import annotations

import json
from typing import Any

from enginerouter.dialects import ollama, openai
from enginerouter.dialects.base import Asked, Failure, OddAnswer, Times
from enginerouter.dialects.embeddings import base64_of
from enginerouter.dialects.framing import LineSplitter
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
    wrong,
)
from enginerouter.errors import BadRequest, printable

PATHS = {openai.CHAT: ollama.CHAT, openai.COMPLETIONS: ollama.GENERATE, openai.EMBEDDINGS: ollama.EMBED}

# Those that have another place or another word, and those that Ollama has no word for.
_TAKEN = {"messages", "prompt", "suffix", "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed",
          "stop", "max_tokens", "max_completion_tokens", "response_format", "reasoning_effort", "chat_template_kwargs",
          "enable_thinking", "top_k", "min_p", "typical_p", "repeat_penalty", "repetition_penalty", "repeat_last_n",
          "tool_choice", "n", "logit_bias", "user", "parallel_tool_calls", "stream_options", "options", "logprobs",
          "top_logprobs", "metadata", "store", "service_tier", "thinking_budget_tokens", "echo", "best_of"}  # fmt: skip
_NUMBERS = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "min_p", "typical_p")
_WHOLES = ("seed", "top_k", "repeat_last_n")
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "max": "max", "xhigh": "max",
            "ultra": "max"}  # fmt: skip


def from_hub(path: str, body: Json) -> Json:
    """The body for `PATHS[path]`. Raises BadRequest that names the field."""
    if path == openai.EMBEDDINGS:
        kept = {k: v for k, v in body.items() if k not in ("encoding_format", "user", "input")}
        if not isinstance(body.get("input"), str | list) or not body["input"]:
            raise BadRequest("'input' is missing: it must be a string or an array of strings")
        given = body["input"]
        return {**kept, "input": given if isinstance(given, str) else texts(given, "input")}
    said = {k: v for k, v in body.items() if k not in _TAKEN and v is not None}
    said["stream"] = optional(body, "stream", bool) is True
    if options := _options(body):
        said["options"] = options
    if form := _format(body):
        said["format"] = form
    if path == openai.COMPLETIONS:
        return said | _prompt(body)
    said["messages"] = _messages(objects(body.get("messages"), "messages"))
    if body.get("tool_choice") == "none":
        said.pop("tools", None)
    if (think := _think(body)) is not None:
        said["think"] = think
    if (wanted := optional(body, "logprobs", bool)) is not None:
        said["logprobs"] = wanted
    if (top := whole(body, "top_logprobs")) is not None:
        said["top_logprobs"] = top
    return said


def _prompt(body: Json) -> Json:
    prompts = texts(body.get("prompt"), "prompt")
    if len(prompts) > 1:
        raise BadRequest("'prompt' must be one string: this engine answers one at a time")
    said: Json = {"prompt": prompts[0] if prompts else ""}
    if suffix := optional(body, "suffix", str):
        said["suffix"] = suffix  # Ollama puts both into the model's own template
    else:
        said["raw"] = True
    if (top := whole(body, "logprobs")) is not None:
        said |= {"logprobs": True, "top_logprobs": top}
    return said


def _options(body: Json) -> Json:
    options: Json = dict(optional(body, "options", dict) or {})
    for key in _NUMBERS:
        if (value := number(body, key)) is not None:
            options[key] = value
    for key in _WHOLES:
        if (value := whole(body, key)) is not None:
            options[key] = value
    for key in ("repetition_penalty", "repeat_penalty"):
        if (value := number(body, key)) is not None:
            options["repeat_penalty"] = value
    for key in ("max_tokens", "max_completion_tokens"):
        if (limit := whole(body, key)) is not None and limit > 0:
            options["num_predict"] = limit
    if stop := texts(body.get("stop"), "stop"):
        options["stop"] = stop
    return options


def _format(body: Json) -> str | Json | None:
    form = optional(body, "response_format", dict) or {}
    if form.get("type") == "json_object":
        return "json"
    if form.get("type") == "json_schema":
        schema = needed(form, "json_schema", dict, "response_format.")
        return needed(schema, "schema", dict, "response_format.json_schema.")
    return None


def _think(body: Json) -> bool | str | None:
    effort = optional(body, "reasoning_effort", str)
    wanted = (optional(body, "chat_template_kwargs", dict) or {}).get("enable_thinking", body.get("enable_thinking"))
    if effort == "none" or wanted is False:
        return False
    if effort is not None:
        return _EFFORTS.get(effort, True)
    return True if wanted is True else None


def _messages(given: list[Json]) -> list[Json]:
    made: list[Json] = []
    names: dict[str, str] = {}  # of tools, by the id of their call
    for index, message in enumerate(given):
        at = f"messages[{index}]."
        role = needed(message, "role", str, at)
        left_out = ("reasoning_content", "reasoning", "tool_calls", "content", "name")
        said = {k: v for k, v in message.items() if k not in left_out and v is not None}
        said["role"] = {"developer": "system", "function": "tool"}.get(role, role)
        said["content"], pictures = _content(message.get("content"), at)
        if pictures:
            said["images"] = pictures
        for key in ("reasoning", "reasoning_content"):
            if thinking := optional(message, key, str, at):
                said["thinking"] = thinking
        if calls := objects(message.get("tool_calls"), f"{at}tool_calls"):
            said["tool_calls"] = [_call(c, f"{at}tool_calls[{i}].", i) for i, c in enumerate(calls)]
            names |= {c["id"]: c["function"]["name"] for c in said["tool_calls"] if "id" in c}
        if said["role"] == "tool":
            name = optional(message, "name", str, at) or names.get(optional(message, "tool_call_id", str, at) or "")
            if name:
                said["tool_name"] = name
        made.append(said)
    return made


def _call(call: Json, at: str, index: int) -> Json:
    function = needed(call, "function", dict, at)
    name = needed(function, "name", str, f"{at}function.")
    arguments = function.get("arguments")
    if arguments is not None and not isinstance(arguments, str | dict):
        raise wrong(f"{at}function.arguments", "a string of JSON", arguments)
    said: Json = {"function": {"index": index, "name": name, "arguments": arguments_of(arguments)}}
    if call_id := optional(call, "id", str, at):
        said["id"] = call_id
    return said


def _content(content: object, at: str) -> tuple[str, list[str]]:
    """The text of a message, and its pictures as Ollama takes them."""
    if content is None or isinstance(content, str):
        return content or "", []
    said: list[str] = []
    pictures: list[str] = []
    for index, part in enumerate(objects(content, f"{at}content")):
        place = f"{at}content[{index}]."
        kind = needed(part, "type", str, place)
        if kind in ("text", "refusal"):
            said.append(needed(part, kind, str, place))
        elif kind == "image_url":
            image = part.get("image_url")
            url = image if isinstance(image, str) else needed(needed(part, "image_url", dict, place), "url", str, place)
            pictures.append(_picture(url, place))
        else:
            raise BadRequest(f"'{place}type' is {printable(kind)!r}, which this engine does not take")
    return "\n".join(said), pictures


def _picture(url: str, at: str) -> str:
    head, _, data = url.partition(",")
    if not head.startswith("data:") or not head.endswith(";base64") or not data:
        raise BadRequest(f"'{at}image_url' must be a data URL in base64: this engine fetches no URL")
    return data


# --- answers


def to_hub(asked: Asked, said: Json, times: Times) -> Json:
    """A whole answer of Ollama as one of OpenAI. Raises OddAnswer."""
    if asked.path == openai.EMBEDDINGS:
        return _embeddings(asked, said)
    message = said.get("message")
    if not isinstance(message, dict) and not isinstance(said.get("response"), str):
        raise OddAnswer("it holds no message")
    model = text_of(said.get("model")) or asked.model
    head: Json = {"id": openai.id_of(asked), "created": int(times.began_utc), "model": model, "usage": _usage(said)}
    if asked.path == openai.COMPLETIONS:
        text = text_of(said.get("response"))
        choice: Json = {"index": 0, "text": text, "finish_reason": _reason(said, has_calls=False)}
        choice["logprobs"] = _listed_logprobs(said) if said.get("logprobs") else None
        return {**head, "object": "text_completion", "choices": [choice]}
    delta = _delta(dict_of(message), asked.answer_id)
    calls = delta.pop("tool_calls", [])
    content = delta.pop("content", "")
    made: Json = {"role": "assistant", "content": content or (None if calls else ""), **delta}
    if calls:
        made["tool_calls"] = [{k: v for k, v in c.items() if k != "index"} for c in calls]
    choice = {"index": 0, "message": made, "finish_reason": _reason(said, has_calls=bool(calls)), "logprobs": None}
    if logprobs := dicts_of(said.get("logprobs")):
        choice["logprobs"] = {"content": logprobs, "refusal": None}
    return {**head, "object": "chat.completion", "choices": [choice]}


def _embeddings(asked: Asked, said: Json) -> Json:
    vectors = said.get("embeddings")
    if not isinstance(vectors, list):
        raise OddAnswer("it holds no embeddings")
    data: list[Json] = []
    for index, vector in enumerate(vectors):
        if not isinstance(vector, list) or not all(type(x) in (float, int) for x in vector):
            raise OddAnswer("an embedding is no list of numbers")
        written: Any = base64_of(vector) if asked.wants_base64 else vector
        data.append({"object": "embedding", "index": index, "embedding": written})
    count = count_of(said.get("prompt_eval_count")) or 0
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"object": "list", "model": text_of(said.get("model")) or asked.model, "data": data, "usage": usage}


def _listed_logprobs(said: Json) -> Json:
    """As /v1/completions has them: lists side by side."""
    ones = dicts_of(said.get("logprobs"))
    tops = [{text_of(t.get("token")): t.get("logprob") for t in dicts_of(o.get("top_logprobs"))} for o in ones]
    tokens, offsets, at = [text_of(o.get("token")) for o in ones], [], 0
    for token in tokens:
        offsets.append(at)
        at += len(token)
    values = [o.get("logprob") for o in ones]
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def _usage(said: Json) -> Json:
    prompt, completion = count_of(said.get("prompt_eval_count")) or 0, count_of(said.get("eval_count")) or 0
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _reason(said: Json, *, has_calls: bool) -> str:
    if said.get("done_reason") == "length":
        return "length"
    return "tool_calls" if has_calls else "stop"


def _delta(message: Json, answer_id: str, first_index: int = 0) -> Json:
    delta: Json = {}
    if text := text_of(message.get("content")):
        delta["content"] = text
    if thinking := text_of(message.get("thinking")):
        delta["reasoning_content"] = thinking
    if calls := dicts_of(message.get("tool_calls")):
        delta["tool_calls"] = [_tool_call(c, answer_id, first_index + i) for i, c in enumerate(calls)]
    return delta


def _tool_call(call: Json, answer_id: str, index: int) -> Json:
    function = dict_of(call.get("function"))
    arguments = function.get("arguments")
    written = arguments if isinstance(arguments, str) else compact(dict_of(arguments))
    name = text_of(function.get("name"))
    call_id = text_of(call.get("id")) or f"call_{answer_id}_{index}"
    return {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": written}}


class OllamaReader:
    """The lines of /api/chat or /api/generate."""

    __slots__ = ("_answer_id", "_calls", "_lines", "failure", "has_ended")

    def __init__(self, asked: Asked) -> None:
        self._answer_id = asked.answer_id
        self._lines = LineSplitter()
        self._calls = 0
        self.failure: Failure | None = None
        self.has_ended = False

    def feed(self, piece: bytes) -> list[Json]:
        return self._chunks(self._lines.feed(piece))

    def end(self) -> list[Json]:
        return self._chunks(self._lines.end())

    def _chunks(self, lines: list[bytes]) -> list[Json]:
        chunks: list[Json] = []
        for line in lines:
            if self.has_ended or self.failure is not None:
                break
            try:
                said = json.loads(line.decode("utf-8", "replace"))
            except (ValueError, RecursionError):
                self.failure = openai.broken_stream("the engine's stream broke off, or holds a line that is no JSON")
                break
            if not isinstance(said, dict):
                continue
            self.failure = openai.stream_failure(said)
            if self.failure is None:
                chunks += self._of(said)
        return chunks

    def _of(self, said: Json) -> list[Json]:
        model = said.get("model")
        choice: Json = {"index": 0, "finish_reason": None}
        if isinstance(message := said.get("message"), dict):
            delta = _delta(message, self._answer_id, self._calls)
            self._calls += len(delta.get("tool_calls", ()))
            choice["delta"] = delta
        else:
            choice["text"] = text_of(said.get("response"))
        if logprobs := dicts_of(said.get("logprobs")):
            is_chat = "delta" in choice
            choice["logprobs"] = {"content": logprobs, "refusal": None} if is_chat else _listed_logprobs(said)
        chunks: list[Json] = (
            [{"model": model, "choices": [choice]}] if choice.get("delta") or choice.get("text") else []
        )
        if said.get("done") is True:
            self.has_ended = True
            end: Json = {"index": 0, "finish_reason": _reason(said, has_calls=self._calls > 0)}
            end["delta" if "delta" in choice else "text"] = {} if "delta" in choice else ""
            chunks += [{"model": model, "choices": [end]}, {"model": model, "choices": [], "usage": _usage(said)}]
        return chunks
