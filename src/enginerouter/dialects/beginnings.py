"""Whether an answer has begun: the first thing in a stream that says something, or is an error. Pure and incremental.

Comments, pings, empty deltas and those that name a role only say nothing yet: until more comes, another engine could
still give the answer. An error that comes first is read for the status it means.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

# A blank line, however lines end; the groups are atomic, or CRLF would count as two ends.
_EVENT_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE_END = re.compile(rb"\r\n|\n|\r")
# What is longer than this without an end says something.
LONGEST_EVENT = 64 * 1024
# Events of the Responses and Messages APIs that only announce an answer.
_ANNOUNCEMENTS = frozenset(
    {"ping", "keepalive", "response.created", "response.in_progress", "response.queued", "message_start"}
)
_STATUS_OF_WORD = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "insufficient_quota": 429,
    "too_many_requests": 429,
    "slow_down": 429,
    "billing_error": 402,
    "insufficient_credits": 402,
    "invalid_api_key": 401,
    "authentication_error": 401,
    "permission_error": 403,
    "context_length_exceeded": 400,
    "exceed_context_size_error": 400,
    "invalid_request_error": 400,
    "model_not_found": 404,
    "not_found_error": 404,
    "request_too_large": 413,
    "not_supported_error": 501,
    "overloaded_error": 503,
    "server_is_overloaded": 503,
    "unavailable_error": 503,
    "timeout_error": 504,
}

StreamKind = Literal["sse", "ndjson"]


@dataclass(frozen=True, slots=True)
class ErrorSaid:
    """An error in place of an answer: the status it means, and its error object."""

    status: int
    fields: dict[str, Any]


BEGUN: Literal["begun"] = "begun"
Beginning = ErrorSaid | Literal["begun"]


class FirstEvent:
    """Reads a stream until it is clear whether it is an answer or an error."""

    __slots__ = ("_kind", "_rest")

    def __init__(self, kind: StreamKind = "sse") -> None:
        self._kind = kind
        self._rest = b""

    def feed(self, chunk: bytes) -> Beginning | None:
        """What the stream turns out to be; None as long as nothing has been said."""
        self._rest += chunk
        border = _EVENT_END if self._kind == "sse" else _LINE_END
        while (end := border.search(self._rest)) is not None:
            event, self._rest = self._rest[: end.start()], self._rest[end.end() :]
            found = _of_event(event) if self._kind == "sse" else _of_json(event.strip())
            if found is not None:
                return found
        return BEGUN if len(self._rest) > LONGEST_EVENT else None


def _of_event(event: bytes) -> Beginning | None:
    name, data = b"", []
    for line in _LINE_END.split(event):
        key, _, value = line.partition(b":")
        if key == b"event":
            name = value.strip()
        elif key == b"data":
            data.append(value.removeprefix(b" "))
    text = b"\n".join(data).strip()
    if not text or name in (b"ping", b"keepalive", b"model_switching"):
        return None
    if text == b"[DONE]":
        return BEGUN
    return _of_json(text, is_error=name == b"error")


def _of_json(text: bytes, *, is_error: bool = False) -> Beginning | None:
    if not text:
        return None
    try:
        said: Any = json.loads(text)
    except (ValueError, RecursionError):
        return BEGUN
    if not isinstance(said, dict):
        return BEGUN
    fields = error_said(said)
    if fields is None and is_error:
        fields = said
    if fields is not None:
        return ErrorSaid(status_said(fields), fields)
    return None if _says_nothing(said) else BEGUN


def error_said(said: dict[str, Any]) -> dict[str, Any] | None:
    """The error object in a piece of an answer, or in a whole answer of status 200, in the shapes engines use."""
    if said.get("type") == "response.failed" and isinstance(response := said.get("response"), dict):
        said = response
    if said.get("choices"):
        return None
    error = said.get("error")
    if isinstance(error, dict) and error:
        return error
    if isinstance(error, str) and error:
        return {"message": error, **{key: said[key] for key in ("code", "type", "status") if key in said}}
    if said.get("object") == "error" or said.get("type") == "error":
        return said
    return None


def error_in_whole(body: bytes) -> ErrorSaid | None:
    """The error that the body of a success is; None for an answer, and for what is too long to be an error."""
    if b'"error"' not in body or len(body) > LONGEST_EVENT:
        return None
    found = _of_json(body)
    return found if isinstance(found, ErrorSaid) else None


def status_said(fields: dict[str, Any], *, unnamed: int = 500) -> int:
    """The HTTP status that an error object means; `unnamed` if it names none."""
    for key in ("status", "status_code", "http_status", "code"):
        value = fields.get(key)
        if isinstance(value, str) and value.isdecimal() and len(value) == 3:
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599:
            return value
    for key in ("code", "type"):
        if isinstance(word := fields.get(key), str) and (status := _STATUS_OF_WORD.get(word.lower())) is not None:
            return status
    return unnamed


def _says_nothing(said: dict[str, Any]) -> bool:
    """An empty object, an announcement, or deltas in which a role is all there is."""
    if not said or said.get("type") in _ANNOUNCEMENTS:
        return True
    if said.get("type") == "content_block_start":
        return _is_empty(said.get("content_block"))
    if "choices" in said:
        choices = said["choices"]
        return isinstance(choices, list) and all(isinstance(c, dict) and _choice_says_nothing(c) for c in choices)
    if "done" in said:  # Ollama
        return (
            not said["done"]
            and not said.get("response")
            and not said.get("thinking")
            and _is_empty(said.get("message"))
        )
    return False


def _choice_says_nothing(choice: dict[str, Any]) -> bool:
    if choice.get("finish_reason") is not None or choice.get("text") or choice.get("message"):
        return False
    return _is_empty(choice.get("delta"))


def _is_empty(part: Any) -> bool:
    """Whether a delta, message or block holds nothing besides its role and type."""
    if not isinstance(part, dict):
        return part is None
    return not any(value for key, value in part.items() if key not in ("role", "type"))
