"""What the data path asks of every dialect, and the words that translations share.

An error in any dialect begins as *fields*: the error object of the hub (`openai.error_fields` for ours,
`openai.engine_error_fields` for an engine's). A dialect turns fields into an answer or the end of a stream.

A streamed answer is translated in two halves that know nothing of each other. A Reader turns the bytes of an engine
into *chunks*, which are those of an OpenAI chat or completions stream as dicts; a Writer turns chunks into the bytes of
the client's dialect. `translation.py` puts two of them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from enginerouter.dialects.reading import Json, count_of, dict_of, dicts_of, seconds_of, text_of

Fields = dict[str, Any]


class Dialect(Protocol):
    """A wire format, as far as the data path must know it. Implementations hold nothing and are made once."""

    @property
    def name(self) -> str: ...

    @property
    def stream_type(self) -> str:
        """The Content-Type of a stream."""

    @property
    def event_ends(self) -> tuple[bytes, ...]:
        """What ends an event: between two events, and only there, is room for words of ours."""

    @property
    def cuts_after_error(self) -> bool:
        """Whether the connection is broken after an error frame, because known clients overlook the frame."""

    def wants_stream(self, path: str, body: Json) -> bool:
        """Whether this request is answered with a stream."""

    def model_of(self, body: Json) -> Any:
        """What the request names as its model, as it stands there."""

    def keepalive(self, text: str, *, has_engine_bytes: bool) -> bytes:
        """A frame that no client takes for a part of the answer. `text` is shown where the dialect has comments."""

    def ends_with(self, events: bytes) -> bool:
        """Whether an answer is over after these events for clients that take whatever follows for more of it."""

    def progress(self, text: str) -> bytes:
        """The opt-in frame that says what is waited for; b"" in a dialect that has no room for one."""

    def comment(self, text: str) -> bytes:
        """A comment before the first event; b"" in a dialect that has none."""

    def error_body(self, status: int, fields: Fields) -> bytes:
        """The body of an error answer."""

    def error_frame(self, path: str, status: int, fields: Fields) -> bytes:
        """The end of a stream that failed, such that the official SDKs raise."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An engine said, or showed by its silence, that a stream failed. `status` is what an answer would have had."""

    status: int
    fields: Fields


@dataclass(frozen=True, slots=True)
class Times:
    """What the router measured of a request; all in seconds.

    `began_at` is monotonic and `began_utc` Unix time of the same moment; `load_s` of the time since then was queueing,
    swapping and loading.
    """

    began_at: float
    began_utc: float
    load_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What the translation of an answer must know of its request."""

    path: str
    model: str
    answer_id: str
    wants_stream: bool
    wants_usage: bool = False
    wants_base64: bool = False
    # An estimate of the prompt's tokens, for a dialect that says them before the engine does.
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, as the engine counted them; None where it said nothing. `prompt` includes `cached`."""

    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None
    # Seconds by the engine's own clock (llama.cpp's `timings`).
    prompt_s: float | None = None
    completion_s: float | None = None


def usage_of(said: Json, before: Usage | None = None) -> Usage | None:
    """The counts in an answer or a chunk: `usage`, Groq's `x_groq.usage`, llama.cpp's `timings`.

    They may come in different chunks; `before` is what was known. None if there is nothing.
    """
    usage = dict_of(said.get("usage")) or dict_of(dict_of(said.get("x_groq")).get("usage"))
    timings = dict_of(said.get("timings"))
    if not usage and not timings:
        return before
    known = before or Usage()
    cached = count_of(dict_of(usage.get("prompt_tokens_details")).get("cached_tokens"))
    prompt, completion = count_of(usage.get("prompt_tokens")), count_of(usage.get("completion_tokens"))
    if timings:
        read, kept = count_of(timings.get("prompt_n")), count_of(timings.get("cache_n"))
        if prompt is None and read is not None:
            prompt = read + (kept or 0)
        cached = kept if cached is None else cached
        completion = count_of(timings.get("predicted_n")) if completion is None else completion
    return Usage(
        known.prompt if prompt is None else prompt,
        known.completion if completion is None else completion,
        known.cached if cached is None else cached,
        seconds_of(timings.get("prompt_ms")) or known.prompt_s,
        seconds_of(timings.get("predicted_ms")) or known.completion_s,
    )


class OddAnswer(ValueError):
    """What an engine sent is no answer. The message says why, without naming the engine."""


def first_choice(said: Json) -> Json:
    """The one choice of an answer that other dialects can express. Raises OddAnswer."""
    choices = dicts_of(said.get("choices"))
    if not choices:
        raise OddAnswer("it holds no choices")
    return choices[0]


def words_of(message: Json) -> str:
    """What a message or delta says: a string, or the texts among its parts; else why nothing is said."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(text_of(part.get("text")) for part in dicts_of(content))
    return text_of(content) or text_of(message.get("refusal"))


def thinking_of(message: Json) -> str:
    """What the model thought, under either key; some engines write both."""
    return text_of(message.get("reasoning_content")) or text_of(message.get("reasoning"))


class Reader(Protocol):
    """One engine's stream, read into chunks of the hub."""

    @property
    def failure(self) -> Failure | None:
        """Set once the engine has said that it failed; nothing is read after that."""

    @property
    def has_ended(self) -> bool:
        """The engine has said that its answer is whole."""

    def feed(self, piece: bytes) -> list[Json]:
        """The chunks that this piece completes. Raises FrameTooLarge."""

    def end(self) -> list[Json]:
        """The connection has ended: what was left."""


class Writer(Protocol):
    """One client's stream, written from chunks of the hub. `now` is monotonic seconds."""

    @property
    def has_finish(self) -> bool:
        """A chunk has said why the answer ends."""

    @property
    def usage(self) -> Usage | None: ...

    def write(self, chunk: Json, now: float) -> bytes:
        """The client's events for one chunk; b"" if it says nothing yet."""

    def finish(self, now: float) -> bytes:
        """The last events of an answer that is whole."""
