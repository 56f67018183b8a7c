"""Requests of Anthropic clients as requests of the hub."""

from __future__ import annotations

from enginerouter.dialects.reading import Json, compact, needed, number, objects, optional, texts, whole, wrong
from enginerouter.errors import BadRequest, printable

# Fields that have a place elsewhere in the hub, or mean something only to Anthropic's own servers.
_TAKEN = {"system", "messages", "tools", "tool_choice", "stop_sequences", "thinking", "output_config", "metadata",
          "service_tier", "container", "cache_control", "speed", "diagnostics", "inference_geo", "context_management",
          "mcp_servers", "betas", "stream", "max_tokens", "output_format"}  # fmt: skip
# Claude Code's own, and different in each request: it would spoil the engine's prompt cache.
_BILLING = "x-anthropic-billing-header"
_PART = tuple[str, Json]


def to_hub(body: Json, *, is_strict: bool) -> Json:
    """The body for /v1/chat/completions. Raises BadRequest that names the field.

    `is_strict`: the engine refuses fields that OpenAI does not have (remote providers do).
    """
    hub = {k: v for k, v in body.items() if k not in _TAKEN and v is not None}
    limit = whole(body, "max_tokens")
    if limit is None or limit < 1:
        raise BadRequest("'max_tokens' is missing: it must be a whole number of at least 1")
    hub["max_tokens"] = limit
    is_stream = optional(body, "stream", bool) is True
    hub["stream"] = is_stream
    if is_stream:
        hub["stream_options"] = {"include_usage": True}
    for key in ("temperature", "top_p"):
        number(body, key)
    if whole(body, "top_k") is not None and is_strict:
        hub.pop("top_k")
    if not (given := objects(body.get("messages"), "messages")):
        raise _no_messages()
    messages = hub["messages"] = _system(body.get("system"))
    for index, message in enumerate(given):
        messages += _message(message, f"messages[{index}].", is_strict=is_strict)
    if stop := texts(body.get("stop_sequences"), "stop_sequences"):
        hub["stop"] = stop
    _add_tools(hub, body)
    _add_thinking(hub, body, is_strict=is_strict)
    if user := optional(optional(body, "metadata", dict) or {}, "user_id", str, "metadata."):
        hub["user"] = user
    return hub


def check_prompt(body: Json) -> None:
    """Whether a prompt has the form that any engine can count. Raises BadRequest that names the field."""
    if not (messages := objects(body.get("messages"), "messages")):
        raise _no_messages()
    for index, message in enumerate(messages):
        at = f"messages[{index}]."
        needed(message, "role", str, at)
        if message.get("content") is None:
            raise _no_content(at)
        for place, block in enumerate(_blocks(message["content"], f"{at}content")):
            needed(block, "type", str, f"{at}content[{place}].")
    _blocks(body.get("system"), "system")
    objects(body.get("tools"), "tools")


def _blocks(said: object, path: str) -> list[Json]:
    """The blocks of a text; none where it is a plain one, or nothing."""
    if said is None or isinstance(said, str):
        return []
    if not isinstance(said, list):
        raise wrong(path, "a string or an array of blocks", said)
    return objects(said, path)


def _no_messages() -> BadRequest:
    return BadRequest("'messages' is missing: it must be an array of at least one message")


def _no_content(at: str) -> BadRequest:
    return BadRequest(f"'{at}content' is missing: it must be a string or an array of blocks")


# --- what is around the messages


def _system(said: object) -> list[Json]:
    if said is None:
        return []
    if isinstance(said, str):
        return [{"role": "system", "content": said}] if said else []
    blocks = objects(said, "system")
    parts = [needed(b, "text", str, f"system[{i}].") for i, b in enumerate(blocks)]
    text = "\n\n".join(p for p in parts if p and not p.startswith(_BILLING))
    return [{"role": "system", "content": text}] if text else []


def _add_tools(hub: Json, body: Json) -> None:
    tools: list[Json] = []
    for index, tool in enumerate(objects(body.get("tools"), "tools")):
        if tool.get("type") not in (None, "custom"):
            continue  # a tool that Anthropic's servers run themselves: nobody here can
        at = f"tools[{index}]."
        function: Json = {"name": needed(tool, "name", str, at)}
        if description := optional(tool, "description", str, at):
            function["description"] = description
        function["parameters"] = optional(tool, "input_schema", dict, at) or {"type": "object", "properties": {}}
        if (strict := optional(tool, "strict", bool, at)) is not None:
            function["strict"] = strict
        tools.append({"type": "function", "function": function})
    choice = optional(body, "tool_choice", dict)
    if not tools:
        return
    hub["tools"] = tools
    if choice is not None:
        hub["tool_choice"] = _tool_choice(choice)
        if optional(choice, "disable_parallel_tool_use", bool, "tool_choice."):
            hub["parallel_tool_calls"] = False


def _tool_choice(choice: Json) -> str | Json:
    kind = needed(choice, "type", str, "tool_choice.")
    if kind == "tool":
        return {"type": "function", "function": {"name": needed(choice, "name", str, "tool_choice.")}}
    words = {"auto": "auto", "any": "required", "none": "none"}
    if kind not in words:
        raise BadRequest(f"'tool_choice.type' must be auto, any, tool or none, not {printable(kind)!r}")
    return words[kind]


def _add_thinking(hub: Json, body: Json, *, is_strict: bool) -> None:
    output = optional(body, "output_config", dict) or {}
    if effort := optional(output, "effort", str, "output_config."):
        hub["reasoning_effort"] = effort
    place, form = "output_config.format.", optional(output, "format", dict, "output_config.")
    if form is None:
        place, form = "output_format.", optional(body, "output_format", dict)  # its older place
    if form:
        schema = needed(form, "schema", dict, place)
        json_schema = {"name": "schema", "schema": schema, "strict": True}
        hub["response_format"] = {"type": "json_schema", "json_schema": json_schema}
    thinking = optional(body, "thinking", dict)
    if thinking is None:
        return
    kind = needed(thinking, "type", str, "thinking.")
    if kind not in ("enabled", "disabled", "adaptive"):
        raise BadRequest(f"'thinking.type' must be enabled, disabled or adaptive, not {printable(kind)!r}")
    budget = whole(thinking, "budget_tokens", "thinking.")
    if is_strict:
        if kind == "disabled":
            hub["reasoning_effort"] = "none"
        elif kind == "enabled" and budget is not None:
            hub.setdefault("reasoning_effort", "low" if budget < 4096 else "medium" if budget < 16384 else "high")
        hub.pop("chat_template_kwargs", None)
        return
    given = hub.get("chat_template_kwargs")
    kept = given if isinstance(given, dict) else {}
    hub["chat_template_kwargs"] = {**kept, "enable_thinking": kind != "disabled"}
    if kind == "enabled" and budget is not None:
        hub["thinking_budget_tokens"] = budget  # llama.cpp's word for it


# --- messages


def _message(message: Json, at: str, *, is_strict: bool) -> list[Json]:
    role = needed(message, "role", str, at)
    if role not in ("user", "assistant", "system"):
        raise BadRequest(f"'{at}role' must be user or assistant, not {printable(role)!r}")
    content = message.get("content")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if content is None:
        raise _no_content(at)
    blocks = [(f"{at}content[{i}].", b) for i, b in enumerate(_blocks(content, f"{at}content"))]
    if role == "assistant":
        return [_assistant(blocks, is_strict=is_strict)]
    return _turn(role, blocks)


def _assistant(blocks: list[_PART], *, is_strict: bool) -> Json:
    said: list[str] = []
    thought: list[str] = []
    calls: list[Json] = []
    for at, block in blocks:
        kind = needed(block, "type", str, at)
        if kind == "text":
            said.append(needed(block, "text", str, at))
        elif kind == "thinking":
            thought.append(needed(block, "thinking", str, at))
        elif kind == "tool_use":
            function = {
                "name": needed(block, "name", str, at),
                "arguments": compact(optional(block, "input", dict, at) or {}),
            }
            calls.append({"id": needed(block, "id", str, at), "type": "function", "function": function})
        elif kind == "redacted_thinking" or _is_servers(kind):
            continue  # nobody but its maker can read it
        else:
            raise BadRequest(f"'{at}type' is {printable(kind)!r}, which this engine does not take from an assistant")
    message: Json = {"role": "assistant", "content": "".join(said) or (None if calls else "")}
    if thought and not is_strict:
        message["reasoning_content"] = "\n".join(thought)
    if calls:
        message["tool_calls"] = calls
    return message


def _is_servers(kind: str) -> bool:
    """A block about a tool that Anthropic's servers ran."""
    return kind in ("server_tool_use", "mcp_tool_use") or (kind.endswith("_tool_result") and kind != "tool_result")


def _turn(role: str, blocks: list[_PART]) -> list[Json]:
    """A user's turn: the results of tools first, as messages of their own; then what the user says and shows."""
    results: list[Json] = []
    shown: list[Json] = []
    parts: list[Json] = []
    for at, block in blocks:
        kind = needed(block, "type", str, at)
        if kind == "tool_result":
            text, pictures = _result(block, at)
            tool_id = needed(block, "tool_use_id", str, at)
            results.append({"role": "tool", "tool_call_id": tool_id, "content": text})
            shown += pictures
        elif not _is_servers(kind):
            parts.append(_part(kind, block, at))
    parts = shown + parts
    if not parts:
        return results or [{"role": role, "content": ""}]
    if all(p["type"] == "text" for p in parts):
        return [*results, {"role": role, "content": "\n".join(p["text"] for p in parts)}]
    return [*results, {"role": role, "content": parts}]


def _result(block: Json, at: str) -> tuple[str, list[Json]]:
    """The text of a tool's result, and its pictures, which only a user's message can hold."""
    content = block.get("content")
    if content is None or isinstance(content, str):
        parts: list[Json] = [{"type": "text", "text": content or ""}]
    else:
        inner = objects(content, f"{at}content")
        places = [f"{at}content[{i}]." for i in range(len(inner))]
        parts = [_part(needed(b, "type", str, p), b, p) for p, b in zip(places, inner, strict=True)]
    text = "\n".join(p["text"] for p in parts if p["type"] == "text")
    if optional(block, "is_error", bool, at):
        text = f"Error: {text}"
    return text, [p for p in parts if p["type"] != "text"]


def _part(kind: str, block: Json, at: str) -> Json:
    if kind == "text":
        return {"type": "text", "text": needed(block, "text", str, at)}
    if kind == "image":
        return {"type": "image_url", "image_url": {"url": _url(needed(block, "source", dict, at), f"{at}source.")}}
    if kind == "document":
        return _document(block, at)
    if kind == "search_result":
        inner = objects(block.get("content"), f"{at}content")
        found = [needed(b, "text", str, f"{at}content[{i}].") for i, b in enumerate(inner)]
        title = optional(block, "title", str, at) or ""
        return {"type": "text", "text": "\n".join([title, *found]).strip()}
    raise BadRequest(f"'{at}type' is {printable(kind)!r}, which this engine does not take")


def _url(source: Json, at: str) -> str:
    kind = needed(source, "type", str, at)
    if kind == "url":
        return needed(source, "url", str, at)
    if kind != "base64":
        raise BadRequest(f"'{at}type' must be base64 or url, not {printable(kind)!r}: nothing is stored here")
    return f"data:{needed(source, 'media_type', str, at)};base64,{needed(source, 'data', str, at)}"


def _document(block: Json, at: str) -> Json:
    source = needed(block, "source", dict, at)
    kind = needed(source, "type", str, f"{at}source.")
    title = optional(block, "title", str, at)
    if kind == "text":
        text = needed(source, "data", str, f"{at}source.")
    elif kind == "content" and isinstance(source.get("content"), str):
        text = source["content"]
    elif kind == "content":
        inner = objects(source.get("content"), f"{at}source.content")
        text = "\n".join(needed(b, "text", str, f"{at}source.content[{i}].") for i, b in enumerate(inner))
    else:
        raise BadRequest(f"'{at}source.type' is {printable(kind)!r}: this engine takes documents only as text")
    return {"type": "text", "text": f"{title}\n{text}" if title else text}
