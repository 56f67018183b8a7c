"""One request between a client of one dialect and an engine that speaks another. The hub is OpenAI.

`plan` says what to send and gives the object that translates what comes back. It knows of sockets nothing: the data
path hands it dicts, bytes and moments, and it hands back dicts and bytes. See the package's docstring for the order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from enginerouter.dialects import (
    anthropic,
    anthropic_answers,
    anthropic_engine,
    anthropic_requests,
    llamacpp_engine,
    ollama,
    ollama_answers,
    ollama_engine,
    ollama_requests,
    openai,
)
from enginerouter.dialects.base import Asked, Dialect, Failure, OddAnswer, Reader, Times, Usage, Writer, usage_of
from enginerouter.dialects.framing import FrameTooLarge
from enginerouter.dialects.reading import Json, compact, optional
from enginerouter.errors import BadRequest, NotBuilt, UpstreamFailed

OPENAI: Dialect = openai.OpenAI()
OLLAMA: Dialect = ollama.Ollama()
ANTHROPIC: Dialect = anthropic.Anthropic()
# In the order in which they are preferred where an engine speaks several and the client's is not among them.
DIALECTS = (OPENAI, OLLAMA, ANTHROPIC)


def dialect_of(path: str) -> Dialect:
    """The dialect that is spoken at a path."""
    if path.startswith("/api/"):
        return OLLAMA
    return ANTHROPIC if path == anthropic.MESSAGES or path.startswith(f"{anthropic.MESSAGES}/") else OPENAI


# The paths that can be translated, by their dialect.
TRANSLATED = {
    "openai": frozenset({openai.CHAT, openai.COMPLETIONS, openai.EMBEDDINGS}),
    "ollama": frozenset({ollama.CHAT, ollama.GENERATE, ollama.EMBED, ollama.EMBEDDINGS}),
    "anthropic": frozenset({anthropic.MESSAGES}),
}


def plan(
    client: Dialect,
    path: str,
    body: Json,
    engine_api: Collection[str],
    *,
    answer_id: str,
    is_strict: bool = False,
    has_infill: bool = False,
) -> Translation | None:
    """How to serve this request from an engine that speaks these dialects; None if it passes through as it is.

    `answer_id` becomes a part of the ids in the answer: letters, digits and `_`, unique to the request. `is_strict`: an
    engine that refuses fields OpenAI does not have; `has_infill`: it is a llama.cpp. Raises BadRequest for what cannot
    be said in the engine's dialect, NotBuilt for a path that has no twin there.
    """
    if client.name in engine_api:
        return None
    if path not in TRANSLATED[client.name]:
        raise NotBuilt(f"{path} is not served by this engine, and cannot be translated for it")
    try:
        return _planned(client, path, body, engine_api, answer_id, is_strict=is_strict, has_infill=has_infill)
    except RecursionError:
        raise BadRequest("the request body is nested too deeply") from None


def _planned(
    client: Dialect,
    path: str,
    body: Json,
    engine_api: Collection[str],
    answer_id: str,
    *,
    is_strict: bool,
    has_infill: bool,
) -> Translation:
    hub_path, hub = path, body
    if client.name == "ollama":
        hub_path, hub = ollama_requests.to_hub(path, body, is_strict=is_strict)
    elif client.name == "anthropic":
        hub_path, hub = openai.CHAT, anthropic_requests.to_hub(body, is_strict=is_strict)
    engine = next((d.name for d in DIALECTS if d.name in engine_api), "openai")
    engine_path = hub_path
    if engine == "ollama":
        engine_path, hub = ollama_engine.PATHS[hub_path], ollama_engine.from_hub(hub_path, hub)
    elif engine == "anthropic":
        if hub_path != openai.CHAT:
            raise NotBuilt(f"{path} is not served by this engine: it speaks Anthropic, which has no twin of it")
        engine_path, hub = anthropic.MESSAGES, anthropic_engine.from_hub(hub)
    elif has_infill and hub_path == openai.COMPLETIONS and "suffix" in hub:
        engine, engine_path, hub = "llamacpp", llamacpp_engine.INFILL, llamacpp_engine.infill_of(hub)
    wants_stream = client.wants_stream(path, body)
    options = (optional(body, "stream_options", dict) or {}) if client.name == "openai" else {}
    asked = Asked(
        path=path,
        model=str(client.model_of(body) or ""),
        answer_id=answer_id,
        wants_stream=wants_stream,
        wants_usage=options.get("include_usage") is True,
        wants_base64=client.name == "openai" and body.get("encoding_format") == "base64",
        prompt_tokens=anthropic.estimated_tokens(body) if wants_stream and client.name == "anthropic" else 0,
    )
    return Translation(client, engine, engine_path, hub, asked, hub_path)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer in the client's dialect, and the tokens it cost."""

    body: bytes
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class Translation:
    """What to send (`path`, `body`), and how to read what comes back. `engine_dialect` is what `body` is written in.

    Besides the three dialects that may be "llamacpp", for a path of llama.cpp's own.
    """

    client: Dialect
    engine_dialect: str
    path: str
    body: Json
    asked: Asked
    _hub_path: str

    def answer(self, raw: bytes, times: Times, now: float, *, engine: str) -> Answer | Failure:
        """A whole answer of status 200, for the client; a Failure if it is an error all the same (some providers do).

        `now` is monotonic seconds. Raises UpstreamFailed naming `engine` if it is neither.
        """
        return self._translated(raw, times, engine, lambda said: self._shown(said, times, now))

    def answer_as_stream(self, raw: bytes, times: Times, now: float, *, engine: str) -> Answer | Failure:
        """The same where a stream was asked for and the engine answered in one piece: the client's whole stream."""
        return self._translated(raw, times, engine, lambda said: self._streamed(said, times, now))

    def _translated(self, raw: bytes, times: Times, engine: str, write: Callable[[Json], Answer]) -> Answer | Failure:
        try:
            said = json.loads(raw, parse_constant=_no_number)
            if not isinstance(said, dict):
                raise OddAnswer("it is no JSON object")
            return openai.stream_failure(said) or write(self._to_hub(said, times))
        except (OddAnswer, RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
            why = str(error) if isinstance(error, OddAnswer) else "it is no JSON"
            raise UpstreamFailed(engine, f"the answer of {engine} cannot be translated: {why}") from error

    def _to_hub(self, said: Json, times: Times) -> Json:
        asked = replace(self.asked, path=self._hub_path)
        read = _TO_HUB.get(self.engine_dialect)
        return said if read is None else read(asked, said, times)

    def _shown(self, said: Json, times: Times, now: float) -> Answer:
        usage = usage_of(said)
        if self.client.name == "ollama":
            said = ollama_answers.from_hub(self.asked, said, times, now)
        elif self.client.name == "anthropic":
            said = anthropic_answers.from_hub(self.asked, said)
        return Answer(compact(said).encode(), usage)

    def _streamed(self, said: Json, times: Times, now: float) -> Answer:
        writer = _WRITERS[self.client.name](self.asked, times)
        body = b"".join([writer.write(chunk, now) for chunk in openai.chunks_of(said)])
        return Answer(body + writer.finish(now), writer.usage)

    def stream(self, times: Times) -> Stream:
        """The translator of one streamed answer. Made when the engine's answer begins, for one try."""
        return Stream(_READERS[self.engine_dialect](self.asked), _WRITERS[self.client.name](self.asked, times))


def payload(body: Json) -> bytes:
    """The bytes of a body for an engine. Raises BadRequest if it is nested too deeply."""
    try:
        return compact(body).encode()
    except RecursionError:
        raise BadRequest("the request body is nested too deeply") from None


def _no_number(name: str) -> float:
    raise OddAnswer(f"it holds {name}")


def _openai_reader(asked: Asked) -> Reader:
    return openai.OpenAIReader()


_TO_HUB: dict[str, Callable[[Asked, Json, Times], Json]] = {
    "llamacpp": llamacpp_engine.to_hub,
    "ollama": ollama_engine.to_hub,
    "anthropic": anthropic_engine.to_hub,
}
_READERS: dict[str, Callable[[Asked], Reader]] = {
    "openai": _openai_reader,
    "llamacpp": llamacpp_engine.InfillReader,
    "ollama": ollama_engine.OllamaReader,
    "anthropic": anthropic_engine.AnthropicReader,
}
_WRITERS: dict[str, Callable[[Asked, Times], Writer]] = {
    "openai": openai.OpenAIWriter,
    "ollama": ollama_answers.OllamaWriter,
    "anthropic": anthropic_answers.AnthropicWriter,
}


class Stream:
    """One engine's stream on its way to one client: whole events of the client's dialect out, whatever comes in.

    A failure – said by the engine, or a stream that breaks off – never becomes a frame here: it is left in `failure`,
    and the data path answers with a status or `Dialect.error_frame`, as with every other error.
    """

    __slots__ = ("_is_done", "_reader", "_writer", "failure", "has_begun")

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer
        self._is_done = False
        self.failure: Failure | None = None
        # Whether something of the answer has come: text, thinking, a tool call or its end – no mere role.
        self.has_begun = False

    @property
    def usage(self) -> Usage | None:
        """The tokens, as far as the engine has said them."""
        return self._writer.usage

    @property
    def is_done(self) -> bool:
        """The answer was whole, and its last event is written. What still comes is not a part of it."""
        return self._is_done

    def feed(self, piece: bytes, now: float) -> bytes:
        """The client's events for this piece of the engine's stream; `now` is monotonic seconds."""
        if self._is_done or self.failure is not None:
            return b""
        try:
            chunks = self._reader.feed(piece)
        except FrameTooLarge as error:
            self.failure = openai.broken_stream(str(error))
            return b""
        return self._written(chunks, now)

    def end(self, now: float) -> bytes:
        """The engine's stream has ended: the last events, if it was whole, else b"" and a failure."""
        if self._is_done or self.failure is not None:
            return b""
        out = self._written(self._reader.end(), now)
        if not self._is_done and self.failure is None:
            if self._writer.has_finish:
                return out + self._finish(now)
            self.failure = openai.broken_stream("the engine's stream ended before its answer was whole")
        return out

    def _written(self, chunks: list[Json], now: float) -> bytes:
        write = self._writer.write
        out = write(chunks[0], now) if len(chunks) == 1 else b"".join([write(chunk, now) for chunk in chunks])
        if not self.has_begun and chunks:
            self.has_begun = any(_says_something(chunk) for chunk in chunks)
        self.failure = self._reader.failure
        if self._reader.has_ended and self.failure is None:
            out += self._finish(now)
        return out

    def _finish(self, now: float) -> bytes:
        self._is_done = True
        return self._writer.finish(now)


def _says_something(chunk: Json) -> bool:
    choices = chunk.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return False
    choice = choices[0]
    delta = choice.get("delta")
    said = delta if isinstance(delta, dict) else {}
    words = (said.get("content"), said.get("reasoning_content"), said.get("reasoning"), said.get("tool_calls"))
    return any(words) or bool(choice.get("text")) or bool(choice.get("finish_reason"))
