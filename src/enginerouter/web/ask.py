"""What a request asks for: its model, whether it wants a stream, and its body as each target gets it.

The bytes stay what they were; where the engine knows the model by another name, only that name is replaced. What a
model's settings change makes the JSON be written anew, once.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import IO, Any

from enginerouter.dialects.params import NO_RULES, ParamRules, changed
from enginerouter.errors import BadRequest
from enginerouter.routing.walk import is_repeatable
from enginerouter.web.body import Body
from enginerouter.web.json_body import THREAD_BYTES, json_object, model_of, parse_json_object
from enginerouter.web.multipart import form_field, replace_form_field

RESPONSES = "/v1/responses"
STORED_RESPONSE = "/v1/responses/"
# Only these answer `"stream": true` with an event stream; elsewhere the word means something else or nothing.
STREAMING_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", RESPONSES})
# The model as a member of an object: its key, and a string with its escapes.
_MODEL_MEMBER = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.)*")')
_FIRST_MEMBER = re.compile(rb'\s*\{\s*"model"\s*:\s*("(?:[^"\\]|\\.)*")')


class Ask:
    """One request's wishes. `body` is what the client sent: bytes, or a temporary file at its start."""

    __slots__ = ("_form", "_parsed", "_path", "body", "model", "wants_stream")

    def __init__(self, path: str, body: bytes | IO[bytes], parsed: dict[str, Any], form: Body | None = None) -> None:
        self.body = body
        self._path = path
        self._parsed = parsed
        self._form = form
        self.model = model_of(parsed)
        self.wants_stream = path in STREAMING_PATHS and parsed.get("stream") is True

    @property
    def is_responses(self) -> bool:
        return self._path.startswith(RESPONSES)

    @property
    def is_repeatable(self) -> bool:
        """Whether it may be asked of a second engine after the first may have begun."""
        return is_repeatable(self._path, self._parsed)

    @property
    def answers_json(self) -> bool:
        """Whether white space may come before the answer: audio is no JSON."""
        return not self._path.startswith("/v1/audio/")

    @property
    def previous_response_id(self) -> str | None:
        if not self.is_responses:
            return None
        given = self._parsed.get("previous_response_id")
        return given if isinstance(given, str) else None

    async def body_for(self, model: str, rules: ParamRules = NO_RULES) -> bytes | IO[bytes]:
        """What a target gets: the model as its engine knows it, after what the model's settings change.

        Always from what the client sent, so that the targets of a chain do not see each other's. Forms get the name
        only, and what asks for a stored response nothing. Raises BadRequest where the JSON cannot be written again.
        """
        if self._path.startswith(STORED_RESPONSE):
            return self.body
        if self._form is not None:
            return self.body if model == self.model else await replace_form_field(self._form, "model", model)
        if not isinstance(self.body, bytes) or (rules.is_empty and model == self.model):
            return self.body
        if rules.is_empty:
            return _renamed(self.body, self._parsed, model)
        body, changes = changed(self._path, self._parsed, rules, model)
        if all(change.step == "model" for change in changes):
            return _renamed(self.body, self._parsed, model) if changes else self.body
        return _written(body) if len(self.body) <= THREAD_BYTES else await asyncio.to_thread(_written, body)

    def release(self) -> None:
        """The request has gone to the engine: let its memory go, too."""
        self.body = b""
        self._parsed = {}


def _renamed(raw: bytes, parsed: dict[str, Any], model: str) -> bytes:
    """The JSON object with another model: one slice replaced where it can be found for sure, else written anew."""
    member = _FIRST_MEMBER.match(raw)
    if member is None and parsed.get("model") is not None and raw.count(b'"model"') == 1 and b"\\u006" not in raw:
        # The one key of that name in the whole body is the one that was read.
        member = _MODEL_MEMBER.search(raw)
    if member is not None:
        return raw[: member.start(1)] + json.dumps(model).encode() + raw[member.end(1) :]
    return _written({**parsed, "model": model})


def _written(parsed: dict[str, Any]) -> bytes:
    try:
        # Escapes, not UTF-8: a lone surrogate, which JSON may hold, has no UTF-8.
        return json.dumps(parsed, separators=(",", ":")).encode()
    except RecursionError:
        raise BadRequest("the request body is nested too deeply") from None


async def understand(path: str, body: Body) -> Ask:
    """Read the model and the wish for a stream out of a JSON or multipart body. Raises BadRequest."""
    if body.content_type[:19].lower() == "multipart/form-data":
        model = await form_field(body, "model")
        return Ask(path, body.file or body.raw, {"model": model}, form=body)
    if not body.raw:
        raise BadRequest("the request has no body; a JSON object with 'model' is needed")
    raw = body.raw
    # Small ones without a further coroutine: this is on the path of every request.
    return Ask(path, raw, parse_json_object(raw) if len(raw) <= THREAD_BYTES else await json_object(raw))
