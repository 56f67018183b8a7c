"""llama.cpp's `/infill`, for requests with a suffix: its `/v1/completions` takes one and does not look at it.

The request is one of the hub for /v1/completions; answer and stream become those of the hub.
"""

from __future__ import annotations

from enginerouter.dialects import openai
from enginerouter.dialects.base import Asked, OddAnswer, Times
from enginerouter.dialects.event_reader import EventReader
from enginerouter.dialects.reading import Json, count_of, dict_of, dicts_of, text_of
from enginerouter.errors import BadRequest

INFILL = "/infill"

# Fields with another word, or none; sampling has the same words in both.
_TAKEN = {"prompt", "suffix", "max_tokens", "logprobs", "stream_options", "repetition_penalty", "response_format"}


def infill_of(hub: Json) -> Json:
    """The body for /infill. Raises BadRequest for a form of the answer: nothing in between has one."""
    if "response_format" in hub:
        raise BadRequest("'format' cannot be passed on together with 'suffix': what fills a gap has no form of its own")
    said = {k: v for k, v in hub.items() if k not in _TAKEN}
    said["input_prefix"], said["input_suffix"] = hub["prompt"], hub["suffix"]
    if "max_tokens" in hub:
        said["n_predict"] = hub["max_tokens"]
    if "logprobs" in hub:
        said["n_probs"] = hub["logprobs"]
    return said


def to_hub(asked: Asked, said: Json, times: Times) -> Json:
    """A whole answer as one of /v1/completions. Raises OddAnswer."""
    if not isinstance(said.get("content"), str):
        raise OddAnswer("it holds no content")
    return {
        "id": openai.id_of(asked),
        "object": "text_completion",
        "created": int(times.began_utc),
        "model": text_of(said.get("model")) or asked.model,
        "choices": [{"index": 0, "text": said["content"], "finish_reason": _reason(said), "logprobs": _logprobs(said)}],
        **_counts(said),
    }


def _reason(said: Json) -> str:
    return "length" if said.get("stop_type") == "limit" or said.get("stopped_limit") is True else "stop"


def _logprobs(said: Json) -> Json | None:
    found = dicts_of(said.get("completion_probabilities"))
    return {"content": found} if found else None


def _counts(said: Json) -> Json:
    prompt, completion = count_of(said.get("tokens_evaluated")), count_of(said.get("tokens_predicted"))
    counts: Json = {"timings": said["timings"]} if dict_of(said.get("timings")) else {}
    if prompt is not None and completion is not None:
        total = prompt + completion
        counts["usage"] = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}
    return counts


class InfillReader(EventReader):
    """The events of /infill; the last one says `stop`, and no [DONE] follows."""

    __slots__ = ()

    def _of(self, said: Json) -> list[Json]:
        self._model = text_of(said.get("model")) or self._model
        chunks: list[Json] = []
        if text := text_of(said.get("content")):
            choice: Json = {"index": 0, "text": text, "finish_reason": None, "logprobs": _logprobs(said)}
            chunks.append({"model": self._model, "choices": [choice]})
        if said.get("stop") is True:
            self.has_ended = True
            end: Json = {"index": 0, "text": "", "finish_reason": _reason(said)}
            chunks += [{"model": self._model, "choices": [end]}, {"model": self._model, "choices": [], **_counts(said)}]
        return chunks
