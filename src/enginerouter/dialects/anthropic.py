"""The Anthropic wire format: its errors and frames, and the estimate of a prompt's tokens."""

from __future__ import annotations

import json
from typing import Any

from enginerouter.dialects.base import Fields
from enginerouter.dialects.reading import Json, compact

MESSAGES = "/v1/messages"
COUNT_TOKENS = "/v1/messages/count_tokens"

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class Anthropic:
    """The dialect; see base.Dialect."""

    __slots__ = ()

    name = "anthropic"
    stream_type = "text/event-stream; charset=utf-8"
    event_ends = (b"\n\n", b"\r\n\r\n", b"\r\r")
    cuts_after_error = False

    def wants_stream(self, path: str, body: Json) -> bool:
        return path == MESSAGES and body.get("stream") is True

    def model_of(self, body: Json) -> Any:
        return body.get("model")

    def keepalive(self, text: str, *, has_engine_bytes: bool) -> bytes:
        return PING

    def ends_with(self, events: bytes) -> bool:
        return False  # comments and pings are nothing to any client, wherever they stand

    def progress(self, text: str) -> bytes:
        event = {"type": "model_switching", "status": text}
        return f"event: model_switching\ndata: {json.dumps(event)}\n\n".encode()

    def comment(self, text: str) -> bytes:
        return f": {text}\n\n".encode()

    def error_body(self, status: int, fields: Fields) -> bytes:
        return compact(_error(status, fields)).encode()

    def error_frame(self, path: str, status: int, fields: Fields) -> bytes:
        return f"event: error\ndata: {compact(_error(status, fields))}\n\n".encode()


def error_type(status: int) -> str:
    """Anthropic's word for an error, by its status."""
    return _TYPES.get(status) or ("invalid_request_error" if 400 <= status < 500 else "api_error")


def _error(status: int, fields: Fields) -> Json:
    error = {"type": error_type(status), "message": str(fields.get("message"))}
    if fields.get("detail") is not None:
        error["detail"] = fields["detail"]
    return {"type": "error", "error": error, "request_id": fields.get("request_id")}


# --- the estimate

_PER_MESSAGE = 4
_PER_PICTURE = 1500
_NO_TEXT = {"cache_control", "signature", "id", "tool_use_id", "media_type"}


def estimated_tokens(body: Json) -> int:
    """About how many tokens a request's prompt has; for any JSON.

    A quarter of the characters of `system`, `messages` and `tools` (names, descriptions and schemas as compact JSON),
    4 for every message, 1,500 for every picture or document that is not text.
    """
    messages = body.get("messages")
    chars, extra = 0, _PER_MESSAGE * len(messages) if isinstance(messages, list) else 0
    todo: list[object] = [body.get("system"), messages]
    while todo:
        one = todo.pop()
        if isinstance(one, str):
            chars += len(one)
        elif isinstance(one, list):
            todo.extend(one)
        elif isinstance(one, dict):
            if one.get("type") in ("base64", "url") and ("data" in one or "url" in one):
                extra += _PER_PICTURE
            elif one.get("type") == "tool_use":
                chars += len(compact([one.get("name"), one.get("input")]))
            else:
                todo.extend(v for k, v in one.items() if k not in ("type", "role") and k not in _NO_TEXT)
    if tools := body.get("tools"):
        chars += len(compact(tools))
    return max(1, -(-chars // 4) + extra)
