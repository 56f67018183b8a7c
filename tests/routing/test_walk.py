"""The decisions of a walk, as tables: what goes on, under which name, what it says of the target, what is left."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from enginerouter.config.model import Alias
from enginerouter.errors import (
    BadRequest,
    EngineBusy,
    EngineCrashed,
    EngineStalled,
    FirstByteTimeout,
    Forbidden,
    FreeFailed,
    Held,
    KeyRefused,
    LeaseCut,
    NoFittingTarget,
    NoHealthyTarget,
    Pinned,
    PortTaken,
    QueueFull,
    QueueTimedOut,
    RouterError,
    ShuttingDown,
    StartCircuitOpen,
    StartFailed,
    StartTimedOut,
    Unreachable,
    UpstreamFailed,
)
from enginerouter.routing import walk
from enginerouter.routing.target import Chain, Target
from enginerouter.routing.walk import Attempt, CoolDowns, Failure
from enginerouter.slots import SlotId


def target(label: str, **more: Any) -> Target:
    engine, _, model = label.partition("/")
    return Target("best", model, engine, SlotId(engine), more.pop("upstream_model", model), label, **more)


def chain(*labels: str, unknown: tuple[str, ...] = (), **alias: Any) -> Chain:
    return Chain(Alias(name="best", chain=labels, **alias), tuple(target(label) for label in labels), unknown)


# --- our own errors: (error, reason, weight on health, proves that nothing was begun)

OURS: list[tuple[RouterError, str, str, bool]] = [
    (Unreachable("a", "x"), "connection_refused", "failed", True),
    (UpstreamFailed("a", "x"), "connection_broke", "failed", False),
    (EngineCrashed("a", "x"), "engine_crashed", "failed", False),
    (FirstByteTimeout("a", "x"), "first_byte_timeout", "failed", False),
    (EngineStalled("a", "x"), "engine_stalled", "failed", False),
    (LeaseCut("x"), "cut_for_swap", "none", False),
    (QueueFull("x"), "queue_full", "none", True),
    (QueueTimedOut("x"), "queue_timeout", "none", True),
    (StartFailed("a", "x"), "start_failed", "none", True),
    (StartTimedOut("a", "x"), "start_timeout", "none", True),
    (PortTaken("a", "x"), "port_taken", "none", True),
    (FreeFailed("a", "x"), "free_failed", "none", True),
    (StartCircuitOpen("x"), "start_circuit_open", "none", True),
    (Held("x"), "held", "none", True),
    (Pinned("x"), "pinned", "none", True),
    (EngineBusy("x"), "engine_busy", "none", True),
]


@pytest.mark.parametrize(("error", "reason", "weight", "is_untouched"), OURS)
def test_what_an_error_of_ours_means(error: RouterError, reason: str, weight: str, is_untouched: bool) -> None:
    failure = walk.of_error(error)
    assert failure is not None
    assert (failure.reason, failure.weight, failure.is_untouched) == (reason, weight, is_untouched)


@pytest.mark.parametrize("error", [ShuttingDown("x"), BadRequest("x")])
def test_what_ends_a_walk(error: RouterError) -> None:
    assert walk.of_error(error) is None


# --- what engines say: (status, error object, with a key of ours, reason or None for the caller's)

THEIRS: list[tuple[int, dict[str, Any], bool, str | None]] = [
    (200, {}, True, None),
    (302, {}, True, None),
    (400, {"code": "context_length_exceeded"}, True, None),
    (400, {"message": "API key not valid. Please pass a valid API key."}, True, "key_refused"),
    (400, {"message": "API key not valid. Please pass a valid API key."}, False, None),
    (400, {"message": "your text names an api key"}, True, None),
    (401, {}, True, "key_refused"),
    (401, {}, False, None),
    (402, {}, True, "key_refused"),
    (402, {}, False, None),
    (403, {}, True, "key_refused"),
    (403, {"message": "Your input was flagged by moderation"}, True, None),
    (403, {"metadata": {"flagged_input": "x"}}, True, None),
    (403, {"code": "content_policy_violation"}, True, None),
    (403, {}, False, None),
    (404, {}, True, None),
    (408, {}, True, "http_408"),
    (409, {}, True, None),
    (413, {}, True, None),
    (422, {}, True, None),
    (425, {}, True, "http_425"),
    (429, {}, True, "rate_limited"),
    (429, {}, False, "rate_limited"),
    (429, {"code": "insufficient_quota"}, True, "key_refused"),
    (429, {"type": "insufficient_quota"}, False, "rate_limited"),
    (500, {}, True, "http_500"),
    (501, {}, True, None),
    (502, {}, False, "http_502"),
    (503, {}, False, "http_503"),
    (504, {}, False, "http_504"),
    (508, {}, False, "loop"),
    (529, {}, True, "http_529"),
]


def judged(
    status: int, error: dict[str, Any], *, has_our_key: bool = True, mismatch: bool = False, after: float | None = None
) -> Failure | None:
    return walk.of_answer(
        status,
        error,
        has_our_key=has_our_key,
        takes_mismatch=mismatch,
        retry_after_s=after,
        cool_downs=CoolDowns(30.0, 3600.0),
    )


@pytest.mark.parametrize(("status", "error", "has_our_key", "reason"), THEIRS)
def test_what_an_answer_means(status: int, error: dict[str, Any], has_our_key: bool, reason: str | None) -> None:
    failure = judged(status, error, has_our_key=has_our_key)
    assert (failure.reason if failure is not None else None) == reason


@pytest.mark.parametrize(
    ("status", "error", "goes_on"),
    [
        (404, {}, True),
        (405, {}, True),
        (413, {}, True),
        (501, {}, True),
        (400, {"code": "context_length_exceeded"}, True),
        (400, {"type": "exceed_context_size_error"}, True),
        (400, {"message": "This model's maximum context length is 4096 tokens"}, True),
        (400, {"message": "this model does not support tools"}, True),
        (400, {"message": "messages must be a list"}, False),
        (422, {"message": "temperature must be at least 0"}, False),
        (409, {}, False),
    ],
)
def test_what_only_this_target_cannot_do(status: int, error: dict[str, Any], goes_on: bool) -> None:
    failure = judged(status, error, mismatch=True)
    assert (failure is not None) is goes_on
    assert failure is None or (failure.reason, failure.weight) == ("mismatch", "none")


def test_how_long_a_target_is_left_alone() -> None:
    assert judged(429, {}) == Failure("rate_limited", "cool_down", 429, 30.0, is_untouched=True)
    assert judged(429, {}, after=7.0) == Failure("rate_limited", "cool_down", 429, 7.0, is_untouched=True)
    assert judged(401, {}, after=7.0) == Failure("key_refused", "cool_down", 401, 3600.0, is_untouched=True)


NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "1.5"}, 1.5),
        ({"Retry-After": "Sat, 21 Nov 2026 12:00:20 GMT"}, 20.0),
        ({"Retry-After": "Sat, 21 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": ""}, None),
        ({"retry-after-ms": "2500", "Retry-After": "9"}, 2.5),
        ({"retry-after-ms": "x", "Retry-After": "9"}, 9.0),
    ],
)
def test_when_an_engine_wants_to_be_asked_again(headers: dict[str, str], seconds: float | None) -> None:
    assert walk.retry_after_said(headers, NOW) == seconds


# --- what may happen twice


@pytest.mark.parametrize(
    ("path", "body", "is_repeatable"),
    [
        ("/v1/chat/completions", {"store": True}, True),
        ("/v1/messages", {}, True),
        ("/api/generate", {}, True),
        ("/infill", {}, True),
        ("/v1/responses", {}, True),
        ("/v1/responses", {"store": False, "background": False, "previous_response_id": None}, True),
        ("/v1/responses", {"store": True}, False),
        ("/v1/responses", {"background": True}, False),
        ("/v1/responses", {"previous_response_id": "resp_1"}, False),
        ("/v1/audio/speech", {}, False),
        ("/v1/images/edits", {}, False),
    ],
)
def test_what_may_be_asked_of_a_second_target(path: str, body: dict[str, Any], is_repeatable: bool) -> None:
    assert walk.is_repeatable(path, body) is is_repeatable


@pytest.mark.parametrize("repeatable", [False, True])
@pytest.mark.parametrize("unsafe", [False, True])
@pytest.mark.parametrize("untouched", [False, True])
def test_who_may_go_on(repeatable: bool, unsafe: bool, untouched: bool) -> None:
    failure = Failure("x", is_untouched=untouched)
    goes_on = walk.may_go_on(failure, repeatable=repeatable, retries_unsafe=unsafe)
    assert goes_on is (repeatable or unsafe or untouched)


@pytest.mark.parametrize(
    ("first", "other", "shares"),
    [
        ({"upstream_model": "nomic"}, {"upstream_model": "nomic"}, True),
        ({"upstream_model": "a", "same_as": "nomic"}, {"upstream_model": "b", "same_as": "nomic"}, True),
        ({"upstream_model": "nomic"}, {"upstream_model": "b", "same_as": "nomic"}, True),
        ({"upstream_model": "a"}, {"upstream_model": "b"}, False),
        ({"upstream_model": "a", "same_as": "x"}, {"upstream_model": "b", "same_as": "y"}, False),
    ],
)
def test_which_embeddings_mix(first: dict[str, Any], other: dict[str, Any], shares: bool) -> None:
    assert walk.shares_vectors(target("e/a", **first), target("f/b", **other)) is shares


# --- who is asked at all


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"is_fenced": True, "is_unconfigured": True}, "fenced"),
        ({"is_unconfigured": True}, "unconfigured"),
        ({"path": "/v1/embeddings"}, "other_vectors"),
        ({"instance": "one", "via": ("zero", "one")}, "loop"),
        ({"instance": "one", "via": ("zero",)}, ""),
        ({"via": ("zero",)}, ""),
    ],
)
def test_why_a_target_is_passed_over(changes: dict[str, Any], reason: str) -> None:
    best = chain("a/m", "b/n")
    usual: dict[str, Any] = {
        "path": "/v1/chat/completions", "is_fenced": False, "is_unconfigured": False, "instance": None, "via": (),
    }  # fmt: skip
    assert walk.pass_over(best.targets[1], best, **{**usual, **changes}) == reason


# --- nothing left


def left(*reasons: str, unknown: tuple[str, ...] = (), names_fenced: bool = False) -> RouterError:
    attempts = [Attempt(target(f"e{n}/m"), reason, seconds=0.1) for n, reason in enumerate(reasons)]
    return walk.nothing_left(chain("x/y", unknown=unknown), attempts, names_fenced=names_fenced, retry_after_s=5.0)


@pytest.mark.parametrize(
    ("reasons", "kind"),
    [
        (("fenced",), Forbidden),
        (("fenced", "fenced"), Forbidden),
        (("key_refused",), KeyRefused),
        (("key_refused", "fenced"), KeyRefused),
        (("key_refused", "http_500"), NoHealthyTarget),
        (("fenced", "http_500"), NoHealthyTarget),
        (("unconfigured",), NoFittingTarget),
        (("mismatch", "fenced"), NoFittingTarget),
        (("mismatch", "rate_limited"), NoHealthyTarget),
        ((), NoHealthyTarget),
    ],
)
def test_what_is_said_when_nothing_is_left(reasons: tuple[str, ...], kind: type[RouterError]) -> None:
    assert type(left(*reasons)) is kind


def test_the_attempts_say_who_and_why_and_a_fence_hides_names() -> None:
    error = left("http_500", "fenced")
    assert isinstance(error, NoHealthyTarget)
    assert error.attempts == [
        {"engine": "e0", "model": "m", "reason": "http_500", "seconds": 0.1},
        {"engine": None, "model": None, "reason": "fenced", "seconds": 0.1},
    ]
    assert error.retry_after_s == 5.0
    assert "e1" not in error.message
    shown = left("http_500", "fenced", names_fenced=True)
    assert isinstance(shown, NoHealthyTarget)
    assert shown.attempts[1]["engine"] == "e1"


def test_entries_that_nobody_has_are_told() -> None:
    error = left(unknown=("gone", "ollama/gone"))
    assert isinstance(error, NoHealthyTarget)
    assert [(a["engine"], a["model"], a["reason"]) for a in error.attempts] == [
        (None, "gone", "unknown_model"),
        ("ollama", "gone", "unknown_model"),
    ]


@pytest.mark.parametrize(("known", "seconds"), [([], None), ([None], None), ([3.0, None, 1.0], 1.0)])
def test_when_to_come_back(known: list[float | None], seconds: float | None) -> None:
    assert walk.seconds_to_retry(known) == seconds


# --- boxes in a circle


@pytest.mark.parametrize(
    ("via", "ids"),
    [
        ("", ()),
        ("one", ("one",)),
        (" one ,two,", ("one", "two")),
        ("o\u00e9, a b, " + "x" * 65, ()),
        (",".join("abcdef"), tuple("abcdef")),
    ],
)
def test_which_routers_a_request_came_through(via: str, ids: tuple[str, ...]) -> None:
    assert walk.instances(via) == ids


def test_a_circle_and_too_many_hops_are_refused() -> None:
    assert walk.loop_of(("a", "b", "c", "d"), "me") is None
    assert "5 routers" in (walk.loop_of(("a", "b", "c", "d", "e"), "me") or "")
    assert "came back" in (walk.loop_of(("me", "b"), "me") or "")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("image input is not supported - hint: if this is unexpected, you may need to provide the mmproj", None),
        ("audio input is not supported", None),
        ("CUDA error: out of memory", "http_500"),
        ("this operation is not supported", "http_500"),
    ],
)
def test_a_500_for_a_picture_that_the_model_cannot_take_is_the_callers(message: str, expected: str | None) -> None:
    """llama.cpp says so with 500; counted, three pictures would send everybody's chats to the next target."""
    said = {"message": message}
    given = {"has_our_key": False, "retry_after_s": None, "cool_downs": CoolDowns()}
    failure = walk.of_answer(500, said, takes_mismatch=False, **given)
    assert (failure.reason if failure else None) == expected
    failure = walk.of_answer(500, said, takes_mismatch=True, **given)
    assert failure is not None
    assert failure.weight == ("failed" if expected else "none")
