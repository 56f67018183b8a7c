"""Requests of Ollama clients as requests of the hub."""

from __future__ import annotations

import zlib
from typing import Any

from enginerouter.dialects import ollama, openai
from enginerouter.dialects.reading import Json, compact, needed, number, objects, optional, texts, whole, wrong
from enginerouter.errors import BadRequest

# The beginning of a picture in base64 says its kind.
_PICTURES = (("/9j/", "jpeg"), ("iVBOR", "png"), ("R0lGOD", "gif"), ("UklGR", "webp"))
_LEVELS = ("low", "medium", "high", "max")

# Fields of the whole request that have a place elsewhere in the hub, or none.
_TAKEN = {"messages", "prompt", "options", "format", "think", "keep_alive", "truncate", "shift", "stream", "logprobs",
          "top_logprobs", "images", "suffix", "system", "template", "context", "raw", "name"}  # fmt: skip
_SAME_OPTIONS = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
# Options of llama.cpp and its like, which strict remote engines refuse.
_ENGINE_OPTIONS = ("min_p", "typical_p")
_ENGINE_WHOLE_OPTIONS = ("top_k", "repeat_last_n")
# Decided when an engine is launched.
_LAUNCH_OPTIONS = {"num_ctx", "num_keep", "num_batch", "num_gpu", "main_gpu", "use_mmap", "use_mlock", "num_thread",
                   "draft_num_predict", "numa", "low_vram", "f16_kv", "vocab_only", "penalize_newline"}  # fmt: skip
_ENGINE_FIELDS = {"chat_template_kwargs", "top_k", "min_p", "typical_p", "repeat_penalty", "repetition_penalty",
                  "repeat_last_n"}  # fmt: skip


def to_hub(path: str, body: Json, *, is_strict: bool) -> tuple[str, Json]:
    """Path and body for an engine that speaks OpenAI. Raises BadRequest that names the field.

    `is_strict`: the engine refuses fields that OpenAI does not have (remote providers do).
    """
    if path in (ollama.EMBED, ollama.EMBEDDINGS):
        return openai.EMBEDDINGS, _embeddings(path, body)
    hub = {k: v for k, v in body.items() if k not in _TAKEN and v is not None}
    is_stream = optional(body, "stream", bool) is not False
    hub["stream"] = is_stream
    if is_stream:
        hub["stream_options"] = {"include_usage": True}
    _add_options(hub, optional(body, "options", dict) or {}, is_strict=is_strict)
    _add_format(hub, body.get("format"))
    is_plain = path == ollama.GENERATE and bool(optional(body, "raw", bool) or optional(body, "suffix", str))
    _add_logprobs(hub, body, is_plain=is_plain)
    if path == ollama.CHAT:
        hub["messages"] = _messages(objects(body.get("messages"), "messages"), is_strict=is_strict)
    elif is_plain:
        _add_plain_prompt(hub, body)
        return openai.COMPLETIONS, hub
    else:
        hub["messages"] = _messages_of_prompt(body)
    _add_thinking(hub, body.get("think"), is_strict=is_strict)
    if "tools" in hub:
        hub["tools"] = objects(hub["tools"], "tools")
        if not hub["tools"]:
            del hub["tools"]
    return openai.CHAT, hub


def _embeddings(path: str, body: Json) -> Json:
    taken = {"input", "prompt", "options", "keep_alive", "truncate", "name", "stream"}
    hub = {k: v for k, v in body.items() if k not in taken}
    if path == ollama.EMBEDDINGS:
        hub["input"] = needed(body, "prompt", str)
    else:
        given = body.get("input")
        hub["input"] = given if isinstance(given, str) else texts(given, "input")
        if (dimensions := whole(body, "dimensions")) is not None:
            hub["dimensions"] = dimensions
    hub["encoding_format"] = "float"
    return hub


# --- options


def _add_options(hub: Json, options: Json, *, is_strict: bool) -> None:
    at = "options."
    for key in _SAME_OPTIONS:
        if (value := number(options, key, at)) is not None:
            hub[key] = value
    if (seed := whole(options, "seed", at)) is not None:
        hub["seed"] = seed
    if (limit := whole(options, "num_predict", at)) is not None and limit > 0:
        hub["max_tokens"] = limit
    if stop := texts(options.get("stop"), "options.stop"):
        hub["stop"] = stop
    if is_strict:
        for key in _ENGINE_FIELDS & hub.keys():
            del hub[key]
        return
    for key in _ENGINE_OPTIONS:
        if (value := number(options, key, at)) is not None:
            hub[key] = value
    for key in _ENGINE_WHOLE_OPTIONS:
        if (value := whole(options, key, at)) is not None:
            hub[key] = value
    if (penalty := number(options, "repeat_penalty", at)) is not None:
        # One thing, two names: llama.cpp's, and that of vLLM and SGLang.
        hub["repeat_penalty"] = hub["repetition_penalty"] = penalty
    known = {*_SAME_OPTIONS, *_ENGINE_OPTIONS, *_ENGINE_WHOLE_OPTIONS, "seed", "num_predict", "stop", "repeat_penalty"}
    for key, value in options.items():
        if key not in known and key not in _LAUNCH_OPTIONS:
            hub.setdefault(key, value)


def _add_format(hub: Json, form: object) -> None:
    if form in (None, ""):
        return
    if form == "json":
        hub["response_format"] = {"type": "json_object"}
    elif isinstance(form, dict):
        schema = {"name": "schema", "schema": form, "strict": True}
        hub["response_format"] = {"type": "json_schema", "json_schema": schema}
    else:
        raise BadRequest("'format' must be \"json\" or a JSON schema (an object)")


def _add_logprobs(hub: Json, body: Json, *, is_plain: bool) -> None:
    wanted, top = optional(body, "logprobs", bool), whole(body, "top_logprobs")
    if is_plain:
        if wanted:
            hub["logprobs"] = max(1, top or 0)
        return
    if wanted is not None:
        hub["logprobs"] = wanted
    if top is not None and wanted:
        hub["top_logprobs"] = top


def _add_thinking(hub: Json, think: object, *, is_strict: bool) -> None:
    if think is None:
        return
    if not isinstance(think, bool) and think not in _LEVELS:
        raise BadRequest('\'think\' must be true, false, "low", "medium", "high" or "max"')
    if isinstance(think, str):
        hub["reasoning_effort"] = think
    elif is_strict:
        hub["reasoning_effort"] = "medium" if think else "none"
    if not is_strict:
        given = hub.get("chat_template_kwargs")
        kept = given if isinstance(given, dict) else {}
        hub["chat_template_kwargs"] = {**kept, "enable_thinking": bool(think)}


# --- prompts


def _refuse(body: Json, key: str, why: str) -> None:
    if body.get(key):
        raise BadRequest(f"'{key}' cannot be passed on: {why}")


def _add_plain_prompt(hub: Json, body: Json) -> None:
    hub["prompt"] = optional(body, "prompt", str) or ""
    if suffix := optional(body, "suffix", str):
        hub["suffix"] = suffix
    for key in ("images", "system", "template", "context"):
        _refuse(body, key, "this engine takes a raw prompt as text alone")


def _messages_of_prompt(body: Json) -> list[Json]:
    """The prompt as a chat: that is how the engine applies the model's own template."""
    _refuse(body, "template", "this engine uses the model's own; send the whole text with 'raw': true")
    _refuse(body, "context", "this engine keeps no token context; send the messages to /api/chat")
    messages: list[Json] = []
    if system := optional(body, "system", str):
        messages.append({"role": "system", "content": system})
    prompt = optional(body, "prompt", str) or ""
    pictures = texts(body.get("images"), "images")
    messages.append({"role": "user", "content": _with_pictures(prompt, pictures, "images")})
    return messages


def _messages(given: list[Json], *, is_strict: bool) -> list[Json]:
    messages: list[Json] = []
    # Calls of the last assistant message that no tool has answered yet: (id, name).
    waiting: list[tuple[str, str]] = []
    for index, message in enumerate(given):
        at = f"messages[{index}]."
        role = needed(message, "role", str, at).lower()
        content = optional(message, "content", str, at) or ""
        left_out = ("images", "thinking", "tool_calls", "tool_name")
        made = {k: v for k, v in message.items() if k not in left_out and v is not None}
        pictures = texts(message.get("images"), f"{at}images")
        made["role"], made["content"] = role, _with_pictures(content, pictures, f"{at}images")
        thinking = optional(message, "thinking", str, at)
        if thinking and not is_strict:
            made["reasoning_content"] = thinking
        if calls := objects(message.get("tool_calls"), f"{at}tool_calls"):
            made["tool_calls"] = [_call(c, f"{at}tool_calls[{i}].", f"{index}.{i}") for i, c in enumerate(calls)]
            waiting = [(c["id"], c["function"]["name"]) for c in made["tool_calls"]]
        if role == "tool":
            name = optional(message, "tool_name", str, at)
            made["tool_call_id"] = _answered(waiting, optional(message, "tool_call_id", str, at), name, index)
            if name and not is_strict:
                made["name"] = name
        messages.append(made)
    return messages


def _call(call: Json, at: str, place: str) -> Json:
    function = needed(call, "function", dict, at)
    name = needed(function, "name", str, f"{at}function.")
    arguments = function.get("arguments")
    if arguments is not None and not isinstance(arguments, dict | str):
        raise wrong(f"{at}function.arguments", "an object", arguments)
    written = arguments if isinstance(arguments, str) else compact(arguments or {})
    # An id that is the same each time the conversation comes back.
    call_id = (
        optional(call, "id", str, at)
        or f"call_{zlib.crc32(f'{place} {name} {written}'.encode('utf-8', 'replace')):08x}"
    )
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": written}}


def _answered(waiting: list[tuple[str, str]], said: str | None, name: str | None, index: int) -> str:
    """The id of the call that a tool message answers. Old clients say only the tool's name, or nothing."""
    found = next(((i, n) for i, n in waiting if i == said), None)
    if found is None and said:
        return said
    found = found or next(((i, n) for i, n in waiting if n == name), None) or (waiting[0] if waiting else None)
    if found is None:
        return f"call_{zlib.crc32(str(index).encode()):08x}"
    waiting.remove(found)
    return found[0]


def _with_pictures(content: str, pictures: list[str], path: str) -> Any:
    if not pictures:
        return content
    parts: list[Json] = [{"type": "text", "text": content}] if content else []
    for index, picture in enumerate(pictures):
        url = _data_url(picture, f"{path}[{index}]")
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return parts


def _data_url(picture: str, path: str) -> str:
    if picture.startswith("data:"):
        return picture
    if "://" in picture[:16]:
        raise BadRequest(f"'{path}' must be a picture in base64: the router fetches no URL")
    kind = next((kind for start, kind in _PICTURES if picture.startswith(start)), "png")
    return f"data:image/{kind};base64,{picture}"
