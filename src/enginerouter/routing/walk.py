"""Walking a chain: the decisions. Which failure goes on, under what name, what it says of the target, what is left.

Plain functions over plain data; `web/walking.py` makes the tries. A *failure* is why a target did not become the one
who answers. An *attempt* is what is told of it: to the client, in the log, in metrics.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from enginerouter.errors import (
    BadRequest,
    EngineCrashed,
    EngineStalled,
    FirstByteTimeout,
    Forbidden,
    KeyRefused,
    LeaseCut,
    NoFittingTarget,
    NoHealthyTarget,
    RouterError,
    ShuttingDown,
    Unreachable,
    UpstreamFailed,
)
from enginerouter.routing.circuit import Circuit
from enginerouter.routing.target import Chain, Target

# Why a target is passed over without being asked.
FENCED = "fenced"
UNCONFIGURED = "unconfigured"
UNKNOWN = "unknown_model"
CIRCUIT_OPEN = "circuit_open"
OTHER_VECTORS = "other_vectors"
LOOP = "loop"
SLOW = "would_take_longer"
# Reasons of failures that others ask for.
KEY_REFUSED = "key_refused"
RATE_LIMITED = "rate_limited"

MISMATCH = "mismatch"
# What the same request would meet again. Not `UNKNOWN`: the engine that has it may only be down.
INCURABLE = frozenset({FENCED, UNCONFIGURED, OTHER_VECTORS, LOOP, KEY_REFUSED, MISMATCH})

EMBEDDINGS = frozenset({"/v1/embeddings", "/api/embed", "/api/embeddings"})
_BILLABLE = ("/v1/audio/", "/v1/images/")
_RESPONSES = "/v1/responses"
# What counts on health: nothing, a failure, or a time to be left alone.
Weight = Literal["none", "failed", "cool_down"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a target did not answer. `status`: what it said, where it said anything.

    `is_untouched`: it proves that the engine has begun nothing, so that even what must not happen twice may go on.
    """

    reason: str
    weight: Weight = "none"
    status: int | None = None
    cool_down_s: float = 0.0
    is_untouched: bool = False


@dataclass(frozen=True, slots=True)
class Attempt:
    """A target that did not become the one who answers. `was_tried` False: it was passed over."""

    target: Target
    reason: str
    status: int | None = None
    seconds: float = 0.0
    was_tried: bool = True

    def shown(self, *, names_fenced: bool) -> dict[str, Any]:
        """For the error object. A target behind a fence is not named to those it is fenced from."""
        is_hidden = self.reason == FENCED and not names_fenced
        shown: dict[str, Any] = {
            "engine": None if is_hidden else self.target.engine,
            "model": None if is_hidden else self.target.model_id,
            "reason": self.reason,
            "seconds": round(self.seconds, 3),
        }
        if self.status is not None:
            shown["status"] = self.status
        return shown


@dataclass(frozen=True, slots=True)
class CoolDowns:
    """How long a target is left alone, in seconds, where it does not say so itself."""

    rate_limit_s: float = 30.0
    credit_s: float = 3600.0


# --- who is asked at all


def pass_over(
    target: Target,
    chain: Chain,
    *,
    path: str,
    is_fenced: bool,
    is_unconfigured: bool,
    instance: str | None,
    via: Sequence[str],
) -> str:
    """Why a target is not asked for this request, or "". `instance`: the router behind it, where it is one."""
    if is_fenced:
        return FENCED
    if is_unconfigured:
        return UNCONFIGURED
    if path in EMBEDDINGS and not chain.alias.mix_embeddings and not shares_vectors(chain.targets[0], target):
        return OTHER_VECTORS
    return LOOP if instance is not None and instance in via else ""


def closed_by(circuit: Circuit) -> str:
    """Why health does not let a call through: the reason of a cool-down, or the circuit."""
    return circuit.reason if circuit.state == "cooling" else CIRCUIT_OPEN


def is_too_slow(chain: Chain, eta_s: float | None) -> bool:
    """Whether a local target is not waited for (`go_on_after_s`). None: how long it takes is not known yet."""
    limit_s = chain.alias.go_on_after_s
    return limit_s is not None and eta_s is not None and eta_s > limit_s


# --- what may be repeated


def is_repeatable(path: str, body: Mapping[str, Any]) -> bool:
    """Whether another target may be asked the same after this one may have begun: nothing is stored or billed twice."""
    if path.startswith(_BILLABLE):
        return False
    if not path.startswith(_RESPONSES):
        return True
    return not (body.get("store") or body.get("background") or body.get("previous_response_id"))


def may_go_on(failure: Failure, *, repeatable: bool, retries_unsafe: bool) -> bool:
    return repeatable or retries_unsafe or failure.is_untouched


def shares_vectors(first: Target, other: Target) -> bool:
    """Whether embeddings of both belong in one index: the same model, or labelled so (`same_as`)."""
    return bool(_spaces(first) & _spaces(other))


def _spaces(target: Target) -> set[str]:
    return {name for name in (target.upstream_model, target.same_as) if name}


# --- failures of our own making, and of connections


def of_error(error: RouterError) -> Failure | None:
    """The failure that an error of ours means for its target; None: it ends the walk."""
    if isinstance(error, ShuttingDown | BadRequest):
        return None
    if isinstance(error, Unreachable):
        return Failure("connection_refused", "failed", is_untouched=True)
    if isinstance(error, EngineCrashed | FirstByteTimeout | EngineStalled):
        return Failure(error.code, "failed")
    if isinstance(error, UpstreamFailed):
        return Failure("connection_broke", "failed")
    if isinstance(error, LeaseCut):
        return Failure(error.code)
    # The queue, a hold, pins, the start circuit, a start that failed: the engine never saw the request.
    return Failure(error.code, is_untouched=True)


# --- failures that the engine told


_MISMATCH_WORDS = frozenset(
    {
        "context_length_exceeded",
        "exceed_context_size_error",
        "model_not_found",
        "not_supported_error",
        "unsupported_parameter",
        "unsupported_value",
        "string_above_max_length",
    }
)
# What engines say of a prompt that is too long, or of a kind of request that their model cannot serve.
_MISMATCH_TEXT = re.compile(
    r"context (length|size|window)|maximum context|prompt is too long|too many tokens|exceeds? the (available|max)"
    r"|(does not|doesn't|not) support|unsupported|no such model|unknown model",
    re.IGNORECASE,
)
_NOT_TAKEN = re.compile(r"(image|audio|video) input is not supported", re.IGNORECASE)
_OUR_KEY_WORDS = frozenset({"insufficient_quota", "invalid_api_key", "billing_hard_limit_reached"})
# Gemini says 400 of a key that it does not know, and Anthropic of an account without credit.
_OUR_KEY_TEXT = re.compile(r"api key (is )?(not valid|invalid|expired)|credit balance is too low", re.IGNORECASE)
_MODERATED = re.compile(r"moderation|content_policy|content_filter|flagged", re.IGNORECASE)


def of_answer(
    status: int,
    error: Mapping[str, Any],
    *,
    has_our_key: bool,
    takes_mismatch: bool,
    retry_after_s: float | None,
    cool_downs: CoolDowns,
) -> Failure | None:
    """The failure in an answer of status ≥ 400 (or an error that names it); None: it is the caller's, and the answer.

    `error` is its error object. `takes_mismatch`: what this target cannot do, the next one may (`on_mismatch: next`).
    """
    if status < 400:
        return None
    words = {str(error.get(key, "")).lower() for key in ("code", "type")}
    if has_our_key and _is_about_our_key(status, error, words):
        return Failure(KEY_REFUSED, "cool_down", status, cool_downs.credit_s, is_untouched=True)
    if status == 429:
        seconds = retry_after_s if retry_after_s is not None else cool_downs.rate_limit_s
        return Failure(RATE_LIMITED, "cool_down", status, seconds, is_untouched=True)
    if status == 508:
        return Failure(LOOP, status=status, is_untouched=True)
    if status == 501 or _is_mismatch(status, error, words):
        return Failure(MISMATCH, status=status, is_untouched=True) if takes_mismatch else None
    if status in (408, 425) or status >= 500:
        return Failure(f"http_{status}", "failed", status, is_untouched=status == 425)
    return None


def _is_about_our_key(status: int, error: Mapping[str, Any], words: set[str]) -> bool:
    if words & _OUR_KEY_WORDS or status in (401, 402):
        return True
    if status == 400:
        return bool(_OUR_KEY_TEXT.search(str(error.get("message"))))
    # Providers use 403 for refused content as well, which is the caller's.
    return status == 403 and not _MODERATED.search(f"{words} {error.get('message')} {error.get('metadata')}")


def _is_mismatch(status: int, error: Mapping[str, Any], words: set[str]) -> bool:
    if status in (404, 405, 413, 415):
        return True
    if status == 500:  # llama.cpp's word for a picture or a sound that its model cannot take
        return bool(_NOT_TAKEN.search(str(error.get("message"))))
    return status in (400, 422) and (
        bool(words & _MISMATCH_WORDS) or bool(_MISMATCH_TEXT.search(str(error.get("message"))))
    )


def retry_after_said(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """The seconds of `retry-after-ms` or `Retry-After` (a number or a date); None if there is no sense in them."""
    for name, factor in (("retry-after-ms", 0.001), ("Retry-After", 1.0)):
        said = headers.get(name)
        if said is None:
            continue
        try:
            seconds = float(said) * factor
        except ValueError:
            seconds = _until_date(said, now or datetime.now(UTC))
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    return None


def _until_date(said: str, now: datetime) -> float:
    try:
        date = parsedate_to_datetime(said)
    except ValueError:
        return math.nan
    return max(0.0, ((date if date.tzinfo else date.replace(tzinfo=UTC)) - now).total_seconds())


# --- nothing left


def nothing_left(
    chain: Chain, attempts: Sequence[Attempt], *, names_fenced: bool, retry_after_s: float | None
) -> RouterError:
    """What the client gets of a chain whose every target was tried or passed over."""
    asked = chain.asked
    reasons = {a.reason for a in attempts} | ({UNKNOWN} if chain.unknown else set())
    if reasons == {FENCED}:
        return Forbidden(f"every target of {asked!r} is an engine of another machine, and this key may not use those")
    if reasons and reasons <= {KEY_REFUSED, FENCED}:
        refused = [a for a in attempts if a.reason == KEY_REFUSED]
        names = " and ".join(dict.fromkeys(repr(a.target.engine) for a in refused))
        return KeyRefused(
            refused[-1].target.engine,
            f"engine {names} refused our key: no target of {asked!r} is left; "
            "the operator has to look at its key and its credit",
        )
    shown = [a.shown(names_fenced=names_fenced) for a in attempts]
    for entry in chain.unknown:
        engine, slash, model = entry.partition("/")
        shown.append(
            {"engine": engine if slash else None, "model": model if slash else entry, "reason": UNKNOWN, "seconds": 0.0}
        )
    told = f"no target of {asked!r} could answer: {'; '.join(_told(entry) for entry in shown)}"
    if reasons and reasons <= INCURABLE:
        return NoFittingTarget(told, shown)
    return NoHealthyTarget(told, shown, retry_after_s=retry_after_s)


def _told(shown: Mapping[str, Any]) -> str:
    names = [name for name in (shown["engine"], shown["model"]) if name is not None]
    name = "/".join(names) or "a target"
    return f"{name}: {shown['reason']}"


def seconds_to_retry(known: Sequence[float | None]) -> float | None:
    """The earliest of what is known: the next trial of a circuit, the end of a cool-down, a swap."""
    return min((s for s in known if s is not None), default=None)


# --- loops between boxes

MAX_HOPS = 4
_INSTANCE = re.compile(r"[0-9A-Za-z_-]{1,64}")


def instances(via: str) -> tuple[str, ...]:
    """The routers that a request came through, as `X-EngineRouter-Via` lists them; what is no id is left out."""
    return tuple(word for part in via[:1024].split(",") if _INSTANCE.fullmatch(word := part.strip()))


def loop_of(via: Sequence[str], own: str) -> str | None:
    """Why a request that came through these routers is not taken, or None."""
    if own in via:
        return f"the request came back to this router, through {' → '.join(via)}; one of their chains leads in a circle"
    if len(via) > MAX_HOPS:
        return f"the request has gone through {len(via)} routers, and {MAX_HOPS} are the most"
    return None
