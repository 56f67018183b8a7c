"""The Ollama wire format: its errors and frames, and the requests that ask for no answer but only load or unload.

Streams are lines of JSON, and a stream is what a client gets unless it says `"stream": false`. Between lines there is
room for spaces and nothing else: a blank line or a comment breaks most clients.
"""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import dataclass
from typing import Any, Literal

from enginerouter.dialects.base import Fields
from enginerouter.dialects.reading import Json, compact, wrong
from enginerouter.errors import BadRequest, printable

CHAT = "/api/chat"
GENERATE = "/api/generate"
EMBED = "/api/embed"
EMBEDDINGS = "/api/embeddings"
STREAM_PATHS = frozenset({CHAT, GENERATE, "/api/pull", "/api/push", "/api/create"})
_DONE = re.compile(rb'"done"\s*:\s*true')


class Ollama:
    """The dialect; see base.Dialect."""

    __slots__ = ()

    name = "ollama"
    stream_type = "application/x-ndjson"
    event_ends = (b"\n",)
    # Open WebUI overlooks an error line: only a broken connection tells it that the answer is not whole.
    cuts_after_error = True

    def wants_stream(self, path: str, body: Json) -> bool:
        return path in STREAM_PATHS and body.get("stream") is not False

    def model_of(self, body: Json) -> Any:
        return body.get("model") or body.get("name")

    def keepalive(self, text: str, *, has_engine_bytes: bool) -> bytes:
        return b" "

    def ends_with(self, events: bytes) -> bool:
        # A blank after the last line would be a line of its own, which ollama-python reads as JSON.
        return _DONE.search(events.rstrip().rpartition(b"\n")[2]) is not None

    def progress(self, text: str) -> bytes:
        return b""

    def comment(self, text: str) -> bytes:
        return b""

    def error_body(self, status: int, fields: Fields) -> bytes:
        # The message must be a string at the top; what stands beside it is read by nobody but people.
        said = {k: fields[k] for k in ("code", "request_id", "detail") if fields.get(k) is not None}
        return json.dumps({"error": str(fields.get("message")), **said}).encode()

    def error_frame(self, path: str, status: int, fields: Fields) -> bytes:
        return self.error_body(status, fields) + b"\n"


# --- load and unload


@dataclass(frozen=True, slots=True)
class Residency:
    """A request that wants no answer: `load` the model, or `unload` it.

    `keep_alive_s` is how long the model is to stay after its last use: infinite for always, None where nothing is said.
    """

    action: Literal["load", "unload"]
    keep_alive_s: float | None


# What is empty in such a request.
_PROMPTS = {CHAT: "messages", GENERATE: "prompt", EMBED: "input", EMBEDDINGS: "prompt"}


def residency_asked(path: str, body: Json) -> Residency | None:
    """Whether a request only loads or unloads. Raises BadRequest for a `keep_alive` that is no duration."""
    member = _PROMPTS.get(path)
    if member is None or body.get(member) not in (None, "", []):
        return None
    if path == GENERATE and (body.get("images") or body.get("suffix")):
        return None
    keep_s = keep_alive_s(body.get("keep_alive"))
    return Residency("unload" if keep_s == 0 else "load", keep_s)


def residency_answer(path: str, model: str, done: Residency, now_utc: float, load_s: float) -> Json:
    """What such a request is answered with: one object, also where a stream was asked for."""
    if path == EMBEDDINGS:
        return {"embedding": []}
    if path == EMBED:
        return {"model": model, "embeddings": [], "total_duration": ns(load_s), "load_duration": ns(load_s)}
    said: Json = {"message": {"role": "assistant", "content": ""}} if path == CHAT else {"response": ""}
    return {"model": model, "created_at": rfc3339(now_utc), **said, "done": True, "done_reason": done.action}


_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")


def keep_alive_s(value: object) -> float | None:
    """Seconds of a `keep_alive`: a number, or a duration like `1h30m`. A negative one means always: infinite."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise wrong("keep_alive", "a number of seconds or a duration like '5m'", value)
    if isinstance(value, str):
        value = _duration_s(value)
    return math.inf if value < 0 or value > 1e9 else float(value)


def _duration_s(text: str) -> float:
    bare = text.strip().lstrip("+-")
    sign = -1.0 if text.strip().startswith("-") else 1.0
    # A number without a unit: Ollama takes only "0", its clients send others too.
    if re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,18})?", bare):
        return sign * float(bare)
    parts = list(_DURATION.finditer(bare))
    if not parts or "".join(p[0] for p in parts) != bare or len(bare) > 64:
        raise BadRequest(f"'keep_alive' must be a number of seconds or a duration like '5m', not {printable(text)!r}")
    return sign * sum(float(p[1]) * _UNITS_S[p[2]] for p in parts)


# --- times


def ns(seconds: float) -> int:
    """Nanoseconds, never 0: clients divide by them."""
    return max(1, round(seconds * 1e9))


def rfc3339(utc: float) -> str:
    """A moment as Ollama writes it."""
    whole = math.floor(utc)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{int((utc - whole) * 1e6):06d}Z"


class LineHead:
    """The beginning of every line of a stream, `{"model":…,"created_at":…`; what seldom changes is written once."""

    __slots__ = ("_model", "_offset", "_second", "_start", "model")

    def __init__(self, model: str, began_at: float, began_utc: float) -> None:
        self._offset = began_utc - began_at
        self._model = ""
        self._second = -1
        self._start = ""
        self.model = model

    def at(self, now: float) -> str:
        utc = now + self._offset
        second = int(utc)
        if second != self._second or self.model != self._model:
            self._second, self._model = second, self.model
            moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._start = f'{{"model":{compact(self.model)},"created_at":"{moment}.'
        return f'{self._start}{int((utc - second) * 1e6):06d}Z"'
