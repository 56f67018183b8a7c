"""The OpenAI wire format, which is also the hub: its errors, as answers and in-band, in the shapes that make the
official SDKs raise; what engines say of their errors, in whatever shape; streams read and written."""

from __future__ import annotations

import json
import re
from typing import Any

from enginerouter.dialects.base import Asked, Failure, Fields, Times, Usage, first_choice, usage_of
from enginerouter.dialects.beginnings import status_said
from enginerouter.dialects.framing import EventSplitter
from enginerouter.dialects.reading import Json, compact, dict_of, dicts_of
from enginerouter.errors import RouterError

DONE = b"data: [DONE]\n\n"
RESPONSES = "/v1/responses"
COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
# Only these answer `"stream": true` with an event stream; elsewhere the word means something else or nothing.
# llama.cpp's own, whose streams end without [DONE].
LLAMACPP_PATHS = frozenset({"/completion", "/infill"})
STREAM_PATHS = frozenset({CHAT, COMPLETIONS, RESPONSES, *LLAMACPP_PATHS})


class OpenAI:
    """The dialect; see base.Dialect."""

    __slots__ = ()

    name = "openai"
    stream_type = "text/event-stream; charset=utf-8"
    event_ends = (b"\n\n", b"\r\n\r\n", b"\r\r")
    cuts_after_error = False

    def wants_stream(self, path: str, body: Json) -> bool:
        return path in STREAM_PATHS and body.get("stream") is True

    def model_of(self, body: Json) -> Any:
        return body.get("model")

    def keepalive(self, text: str, *, has_engine_bytes: bool) -> bytes:
        # After an `id:` line a blank one makes an SDK dispatch an empty event, so it is left out once there may be one.
        return f": {text}\n".encode() if has_engine_bytes else f": {text}\n\n".encode()

    def ends_with(self, events: bytes) -> bool:
        return False  # comments and pings are nothing to any client, wherever they stand

    def progress(self, text: str) -> bytes:
        return f"event: model_switching\ndata: {json.dumps({'status': text})}\n\n".encode()

    def comment(self, text: str) -> bytes:
        return f": {text}\n\n".encode()

    def error_body(self, status: int, fields: Fields) -> bytes:
        return json.dumps({"error": fields}).encode()

    def error_frame(self, path: str, status: int, fields: Fields) -> bytes:
        if path in LLAMACPP_PATHS:
            return _error_event(fields)
        return error_frame(fields, is_responses=path.startswith(RESPONSES))


# --- errors


def error_fields(error: RouterError, *, is_admin: bool, request_id: str) -> Fields:
    """The error object. Admin keys also see `detail` (log tails, paths)."""
    fields: Fields = {
        "message": error.message,
        "type": error.kind,
        "param": None,
        "code": error.code,
        "request_id": request_id,
        **error.more_fields(),
    }
    if is_admin and error.admin_detail:
        fields["detail"] = error.admin_detail
    return fields


def error_body(error: RouterError, *, is_admin: bool, request_id: str) -> bytes:
    """The body of an error answer."""
    return json.dumps({"error": error_fields(error, is_admin=is_admin, request_id=request_id)}).encode()


def error_frame(fields: Fields, *, is_responses: bool) -> bytes:
    """The end of a stream that failed: `fields` is an error object.

    Chat and completions: an error object, then [DONE]. The Responses API has an `error` event of its own, whose
    `error` member is what makes the SDK raise instead of handing it on as one more event.
    """
    if not is_responses:
        return _error_event(fields) + DONE
    event = {
        "type": "error",
        "code": fields.get("code"),
        "message": fields.get("message"),
        "param": fields.get("param"),
        "sequence_number": 0,
        "error": fields,
    }
    return f"event: error\ndata: {json.dumps(event)}\n\n".encode()


def _error_event(fields: Fields) -> bytes:
    return f"data: {json.dumps({'error': fields})}\n\n".encode()


# What the status says of an error that says nothing of itself.
KIND_OF_STATUS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_TITLE = re.compile(r"<title[^>]*>([^<]{1,200})", re.IGNORECASE)


def kind_of(status: int) -> str:
    """The `type` of an error by its status."""
    return KIND_OF_STATUS.get(status) or ("invalid_request_error" if 400 <= status < 500 else "server_error")


def engine_error_fields(status: int, body: bytes) -> Fields:
    """The error object of an engine's own error answer, whatever shape it has (eight are known); never raises."""
    try:
        said: Any = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    fields = fields_in(status, said)
    if fields is not None:
        return fields
    text = body[:500].decode("utf-8", "replace").strip()
    if text[:1] == "<":
        title = _TITLE.search(text)
        text = f"the engine answered with status {status} and a page" + (f": {title[1].strip()}" if title else "")
    return _plain(status, text or f"the engine answered with status {status}")


def fields_in(status: int, said: object) -> Fields | None:
    """The error object in parsed JSON; None if nothing in it is an error."""
    if isinstance(said, list):
        # Some providers wrap it in a list of one.
        return fields_in(status, said[0]) if len(said) == 1 and isinstance(said[0], dict) else None
    if not isinstance(said, dict):
        return None
    for key in ("error", "detail"):
        inner = said.get(key)
        if isinstance(inner, dict) and isinstance(text := inner.get("message") or inner.get("msg"), str):
            return {"type": kind_of(status), "param": None, "code": status, **inner, "message": text}
        if isinstance(inner, str) and inner:
            return _plain(status, inner)
        if complaints := _complaints(inner):
            return _plain(status, complaints)
    if isinstance(said.get("message"), str):
        return _plain(status, said["message"])
    return None


def _complaints(said: object) -> str:
    """What FastAPI says of fields it does not like: a list of places and words."""
    found = []
    for one in dicts_of(said):
        place = one.get("loc")
        where = ".".join(str(p) for p in place if isinstance(p, str | int)) if isinstance(place, list) else ""
        if isinstance(words := one.get("msg") or one.get("message"), str):
            found.append(f"{where}: {words}" if where else words)
    return "; ".join(found[:5])


def _plain(status: int, message: str) -> Fields:
    return {"message": message, "type": kind_of(status), "param": None, "code": status}


def stream_failure(said: Json) -> Failure | None:
    """The error in one event of a stream, with the status it names (502 if none); None if it is a part of an answer."""
    is_named = (
        said.get("object") == "error" or said.get("type") == "error" or ("detail" in said and "choices" not in said)
    )
    if not said.get("error") and not is_named:
        return None
    inner = said["error"] if isinstance(said.get("error"), dict) else said
    named = status_said(inner, unnamed=502)
    fields = fields_in(named, said)
    return Failure(named, fields or _plain(named, f"the engine's stream failed: {compact(said.get('error'))[:500]}"))


def broken_stream(message: str) -> Failure:
    """A stream that ended, or went wrong, without the engine saying so."""
    fields = {"message": message, "type": "server_error", "param": None, "code": "upstream_failed"}
    return Failure(502, fields)


# --- streams


def id_of(asked: Asked) -> str:
    """The id of an answer of ours."""
    return f"{'cmpl' if asked.path == COMPLETIONS else 'chatcmpl'}-{asked.answer_id}"


def chunks_of(said: Json) -> list[Json]:
    """A whole answer as the chunks of a stream. Raises OddAnswer."""
    choice = dict(first_choice(said))
    reason = choice.pop("finish_reason", None) or "stop"
    if "message" in choice:
        message = dict_of(choice.pop("message"))
        calls = [{**call, "index": i} for i, call in enumerate(dicts_of(message.get("tool_calls")))]
        choice["delta"] = {**message, "tool_calls": calls} if calls else message
    end: Json = {k: v for k, v in choice.items() if k not in ("delta", "text", "logprobs")}
    end["text" if "text" in choice else "delta"] = "" if "text" in choice else {}
    told: Json = {k: said[k] for k in ("usage", "timings", "x_groq") if k in said}
    model = said.get("model")
    return [
        {"model": model, "choices": [{**choice, "finish_reason": None}]},
        {"model": model, "choices": [{**end, "finish_reason": reason}]},
        {"model": model, "choices": [], **told},
    ]


class OpenAIReader:
    """The stream of an engine that speaks OpenAI."""

    __slots__ = ("_events", "failure", "has_ended")

    def __init__(self) -> None:
        self._events = EventSplitter()
        self.failure: Failure | None = None
        self.has_ended = False

    def feed(self, piece: bytes) -> list[Json]:
        return self._chunks(self._events.feed(piece))

    def end(self) -> list[Json]:
        return self._chunks(self._events.end())

    def _chunks(self, events: list[tuple[str, bytes]]) -> list[Json]:
        chunks: list[Json] = []
        for name, data in events:
            if self.has_ended or self.failure is not None:
                break
            if data == b"[DONE]":
                self.has_ended = True
                break
            try:
                chunk = json.loads(data.decode("utf-8", "replace"))
            except (ValueError, RecursionError):
                if name == "error":
                    self.failure = broken_stream(data[:500].decode("utf-8", "replace"))
                elif data.strip():
                    self.failure = broken_stream("the engine's stream broke off, or holds an event that is no JSON")
                continue
            if not isinstance(chunk, dict):
                continue
            if "choices" not in chunk or chunk.get("error"):
                self.failure = stream_failure(chunk)
            elif b'"error"' in data and any(c.get("finish_reason") == "error" for c in dicts_of(chunk["choices"])):
                self.failure = broken_stream("the engine ended its answer with finish_reason 'error'")
            if self.failure is None:
                chunks.append(chunk)
        return chunks


class OpenAIWriter:
    """A chat or completions stream for a client. The usage chunk is shown only to who asked for it."""

    __slots__ = ("_asked", "_has_role", "_head", "has_finish", "usage")

    def __init__(self, asked: Asked, times: Times) -> None:
        self._asked = asked
        self._has_role = asked.path == COMPLETIONS
        kind = "text_completion" if asked.path == COMPLETIONS else "chat.completion.chunk"
        self._head: Json = {"id": id_of(asked), "object": kind, "created": int(times.began_utc)}
        self.has_finish = False
        self.usage: Usage | None = None

    def write(self, chunk: Json, now: float) -> bytes:
        self.usage = usage_of(chunk, self.usage)
        choices = dicts_of(chunk.get("choices"))
        out = b""
        if choices:
            if not self._has_role:
                self._has_role = True
                choices[0] = {**choices[0], "delta": {"role": "assistant", **dict_of(choices[0].get("delta"))}}
            self.has_finish = self.has_finish or any(c.get("finish_reason") for c in choices)
            out = self._frame({"model": chunk.get("model") or self._asked.model, "choices": choices})
        if self._asked.wants_usage and "usage" in chunk:
            model = chunk.get("model") or self._asked.model
            out += self._frame({"model": model, "choices": [], "usage": chunk["usage"]})
        return out

    def _frame(self, rest: Json) -> bytes:
        return f"data: {compact({**self._head, **rest})}\n\n".encode()

    def finish(self, now: float) -> bytes:
        return DONE
