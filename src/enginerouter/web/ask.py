"""What a request asks for: its model, whether it wants a stream, and its body as each target gets it.

The bytes stay what they were; where the engine knows the model by another name, only that name is replaced. What a
model's settings change makes the JSON be written anew, once.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Collection
from typing import IO, Any

from enginerouter.dialects.base import Dialect
from enginerouter.dialects.openai import EMBEDDINGS, RESPONSES
from enginerouter.dialects.params import NO_RULES, ParamRules, changed, of_translated
from enginerouter.dialects.reading import Json
from enginerouter.dialects.translation import OPENAI, Translation, dialect_of, payload, plan
from enginerouter.errors import BadRequest
from enginerouter.routing.walk import is_repeatable
from enginerouter.web.body import Body
from enginerouter.web.json_body import THREAD_BYTES, json_object, model_of, parse_json_object
from enginerouter.web.multipart import form_field, replace_form_field

STORED_RESPONSE = "/v1/responses/"
# The model as a member of an object: its key, and a string with its escapes.
_MODEL_MEMBER = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.)*")')
_FIRST_MEMBER = re.compile(rb'\s*\{\s*"model"\s*:\s*("(?:[^"\\]|\\.)*")')


class Ask:
    """One request's wishes. `body` is what the client sent: bytes, or a temporary file at its start.

    `model` is the name that was asked for, `sent_model` what stands under "model" in the body: in Ollama's dialect a
    model may also be a "name". `wants_base64` is said of vectors.
    """

    __slots__ = (
        "_form",
        "_parsed",
        "body",
        "dialect",
        "model",
        "path",
        "previous_response_id",
        "sent_model",
        "wants_base64",
        "wants_stream",
    )

    def __init__(self, path: str, body: bytes | IO[bytes], parsed: Json, form: Body | None = None) -> None:
        self.body = body
        self.path = path
        self.dialect: Dialect = dialect_of(path)
        self._parsed = parsed
        self._form = form
        self.model = self.sent_model = model_of(parsed)
        if self.model is None and self.dialect is not OPENAI:
            self.model = model_of({"model": self.dialect.model_of(parsed)})
        self.wants_stream = self.dialect.wants_stream(path, parsed)
        given = parsed.get("previous_response_id") if self.makes_response else None
        self.previous_response_id = given if isinstance(given, str) else None
        self.wants_base64 = path == EMBEDDINGS and parsed.get("encoding_format") == "base64"

    @property
    def json(self) -> Json:
        """The body as it was parsed. Of a form only the model; empty after `release`."""
        return self._parsed

    @property
    def makes_response(self) -> bool:
        """Whether its answer may be stored by the engine: not where it asks for one that is."""
        return self.path == RESPONSES

    @property
    def is_repeatable(self) -> bool:
        """Whether it may be asked of a second engine after the first may have begun."""
        return is_repeatable(self.path, self._parsed)

    @property
    def answers_json(self) -> bool:
        """Whether white space may come before the answer: audio is no JSON."""
        return not self.path.startswith("/v1/audio/")

    async def body_for(self, model: str, rules: ParamRules = NO_RULES) -> bytes | IO[bytes]:
        """What a target gets: the model as its engine knows it, after what the model's settings change.

        Always from what the client sent, so that the targets of a chain do not see each other's. Forms get the name
        only, and what asks for a stored response nothing. Raises BadRequest where the JSON cannot be written again.
        """
        if self.path.startswith(STORED_RESPONSE):
            return self.body
        if self._form is not None:
            return self.body if model == self.sent_model else await replace_form_field(self._form, "model", model)
        if not isinstance(self.body, bytes) or (rules.is_empty and model == self.sent_model):
            return self.body
        if rules.is_empty:
            return _renamed(self.body, self._parsed, model)
        body, changes = changed(self.path, self._parsed, rules, model)
        if all(change.step == "model" for change in changes):
            return _renamed(self.body, self._parsed, model) if changes else self.body
        return _written(body) if len(self.body) <= THREAD_BYTES else await asyncio.to_thread(_written, body)

    async def translation_for(
        self, engine_api: Collection[str], answer_id: str, *, is_strict: bool, has_infill: bool
    ) -> Translation:
        """How an engine that does not speak this dialect is asked. Raises BadRequest or NotBuilt."""

        def planned() -> Translation:
            found = plan(
                self.dialect,
                self.path,
                self._parsed,
                engine_api,
                answer_id=answer_id,
                is_strict=is_strict,
                has_infill=has_infill,
            )
            assert found is not None, "it is for engines that speak another dialect"
            return found

        return planned() if self._is_small else await asyncio.to_thread(planned)

    async def translated_body(self, translation: Translation, model: str, rules: ParamRules = NO_RULES) -> bytes:
        """What a target gets of a translated request, after what the model's settings change. Raises BadRequest."""

        rules = of_translated(rules, self._parsed, translation.body)

        def written() -> bytes:
            return payload(changed(translation.path, translation.body, rules, model)[0])

        return written() if self._is_small else await asyncio.to_thread(written)

    @property
    def _is_small(self) -> bool:
        return isinstance(self.body, bytes) and len(self.body) <= THREAD_BYTES

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
    if body.content_type[:19].lower() == "multipart/form-data" and dialect_of(path) is OPENAI:
        model = await form_field(body, "model")
        return Ask(path, body.file or body.raw, {"model": model}, form=body)
    if not body.raw:
        raise BadRequest("the request has no body; a JSON object with 'model' is needed")
    raw = body.raw
    # Small ones without a further coroutine: this is on the path of every request.
    return Ask(path, raw, parse_json_object(raw) if len(raw) <= THREAD_BYTES else await json_object(raw))
