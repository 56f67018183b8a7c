"""Everything that can go wrong for a caller, as one tree.

A class says whose fault it is and carries the answer: `status` (HTTP), `code` (stable, for programs),
`kind` (the `type` of an OpenAI error object) and, where a retry helps, `retry_after_s`.
`is_retryable` False becomes `x-should-retry: false`, so that an SDK does not start a broken engine three times.
The message says what happened, to what, and what to do. `admin_detail` (log tails, paths) is shown to admin keys only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar


class RouterError(Exception):
    """Base of all errors that a client may see; by itself a fault of ours, and the log says which."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    kind: ClassVar[str] = "server_error"
    is_retryable: ClassVar[bool | None] = None

    def __init__(self, message: str, *, retry_after_s: float | None = None, admin_detail: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.admin_detail = admin_detail

    def more_fields(self) -> dict[str, Any]:
        """What the error object holds besides the usual."""
        return {}


# --- the client's fault


class BadRequest(RouterError):
    """What was sent cannot be understood or is not allowed; the message says what."""

    status = 400
    code = "invalid_request"
    kind = "invalid_request_error"


class Unauthorized(BadRequest):
    """A key is needed, and none or a wrong one came."""

    status = 401
    code = "invalid_api_key"
    kind = "authentication_error"


class Forbidden(BadRequest):
    """The key, the Host or the Origin may not do this."""

    status = 403
    code = "forbidden"
    kind = "permission_error"


class NotFound(BadRequest):
    """Nothing is at this path, or of this name."""

    status = 404
    code = "not_found"


class UnknownModel(NotFound):
    """No engine owns the model asked for. `known` gives the names to suggest from."""

    code = "model_not_found"

    def __init__(self, model: str, known: list[str]) -> None:
        close = get_close_matches(model, known, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
        listing = "" if close else "; GET /v1/models lists the names"
        super().__init__(f"model {printable(model)!r} is not known here{hint}{listing}")
        self.model = model


class MethodNotAllowed(BadRequest):
    """The path has other methods; `Allow` names them."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: str = "") -> None:
        super().__init__(message)
        self.allow = allow


class RequestTimeout(BadRequest):
    """The body came too slowly."""

    status = 408
    code = "request_timeout"


class NotResident(BadRequest):
    """The call needs an engine that is not loaded, and is of a kind that never swaps."""

    status = 409
    code = "not_resident"
    is_retryable = False


class HeldByOther(BadRequest):
    """The memory is held by another owner than the one who speaks."""

    status = 409
    code = "held"
    is_retryable = False


class TooLarge(BadRequest):
    """The body alone is above `max_body_mib`, or above what `max_buffered_mib` allows for all that wait."""

    status = 413
    code = "request_too_large"


class UnsupportedMedia(BadRequest):
    """A content type or coding that is not read here."""

    status = 415
    code = "unsupported_media_type"


class QueueFull(RouterError):
    """`max_queued_requests` wait already."""

    status = 429
    code = "queue_full"
    kind = "rate_limit_error"


# --- the engine's fault


class EngineFailed(RouterError):
    """An engine broke: it could not start, died, or could not be freed. `engine` names it."""

    status = 502
    code = "engine_failed"
    is_retryable: ClassVar[bool | None] = False

    def __init__(self, engine: str, message: str, *, admin_detail: str | None = None) -> None:
        super().__init__(message, admin_detail=admin_detail)
        self.engine = engine


class StartFailed(EngineFailed):
    """`cause` is a code of `engines.causes` where the log named one, else None."""

    code = "start_failed"

    def __init__(self, engine: str, message: str, *, cause: str | None = None, admin_detail: str | None = None) -> None:
        super().__init__(engine, message, admin_detail=admin_detail)
        self.cause = cause


class PortTaken(StartFailed):
    """Somebody who is not ours listens where the engine should."""

    code = "port_taken"


class StartTimedOut(StartFailed):
    """The engine was not ready within `start_timeout_s`."""

    status = 504
    code = "start_timeout"


class FreeFailed(EngineFailed):
    """What the engine held could not be confirmed gone; nothing is started on top of it."""

    code = "free_failed"


class EngineCrashed(EngineFailed):
    """The engine died while it served. A retry starts it again. `was_stopped`: somebody stopped it, in good order."""

    code = "engine_crashed"
    is_retryable = None

    def __init__(
        self, engine: str, message: str, *, admin_detail: str | None = None, was_stopped: bool = False
    ) -> None:
        super().__init__(engine, message, admin_detail=admin_detail)
        self.was_stopped = was_stopped


class EngineUnloaded(EngineCrashed):
    """The slot was ended by somebody else, in order: its server unloaded the model. No failure of the engine."""


class UpstreamFailed(EngineFailed):
    """The engine lives, but its connection broke, was refused, or did not speak HTTP."""

    code = "upstream_failed"
    is_retryable = None


class Unreachable(UpstreamFailed):
    """No connection was made, so the engine has seen nothing of the request."""


class FirstByteTimeout(EngineFailed):
    """The engine took the request and sent nothing of an answer in time."""

    status = 504
    code = "first_byte_timeout"
    is_retryable = None


class EngineStalled(EngineFailed):
    """No byte from the engine for too long, or its process is stopped."""

    status = 504
    code = "engine_stalled"


class KeyRefused(EngineFailed):
    """The engine did not accept the operator's key, or its credit is used up: nothing a client can mend."""

    code = "key_refused"


class NotBuilt(RouterError):
    """The configuration names something this version accepts but does not serve."""

    status = 501
    code = "not_supported"
    is_retryable = False


# --- nobody's fault: the box is busy


class EngineUnavailable(RouterError):
    """The engine cannot serve now."""

    status = 503
    code = "engine_unavailable"


class EngineBusy(EngineUnavailable):
    """`on_drain_timeout: refuse`: the engine in the way did not fall idle in time."""

    code = "engine_busy"


class LeaseCut(EngineUnavailable):
    """The answer was ended because its engine had to leave (drain deadline, unload, shutdown)."""

    code = "cut_for_swap"


class QueueTimedOut(EngineUnavailable):
    """The swap that was waited for did not begin within `queue_timeout_s`."""

    code = "queue_timeout"


class Pinned(EngineUnavailable):
    """Only pinned engines are in the way; they stay."""

    code = "pinned"
    is_retryable = False


class Held(EngineUnavailable):
    """The memory is kept free for another program (`/admin/hold`)."""

    code = "held"


class StartCircuitOpen(EngineUnavailable):
    """The engine failed to start too often; it is left alone for a while."""

    code = "start_circuit_open"
    is_retryable = False


class Unconfigured(EngineUnavailable):
    """A remote engine whose key is not set."""

    code = "unconfigured"
    is_retryable = False


class NoHealthyTarget(EngineUnavailable):
    """A chain with nothing left. `attempts` says of each target what came of it, in order."""

    code = "no_healthy_target"

    def __init__(
        self, message: str, attempts: Sequence[Mapping[str, Any]], *, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.attempts = attempts

    def more_fields(self) -> dict[str, Any]:
        return {"attempts": list(self.attempts)}


class NoFittingTarget(NoHealthyTarget):
    """A chain with nothing left, and no target of it could have answered this request a moment later either."""

    is_retryable = False


class LoopDetected(RouterError):
    """The request has been here before, or went through too many routers."""

    status = 508
    code = "loop_detected"
    is_retryable = False

    def __init__(self, message: str, *, instance: str) -> None:
        super().__init__(message)
        self.instance = instance


class NoLongerConfigured(EngineUnavailable):
    """A reload took away what the request was for. Asked again, it is answered by the new configuration."""

    code = "no_longer_configured"


class ShuttingDown(EngineUnavailable):
    """The router is ending."""

    code = "shutting_down"


def retry_after(seconds: float) -> int:
    """A `Retry-After` that every SDK obeys: whole seconds, 1 to 60 (longer ones are ignored or taken as absurd)."""
    return min(60, max(1, math.ceil(seconds)))


# --- starting the router itself


class CannotListen(Exception):
    """The router's own port cannot be had. The message says why, and what to do."""

    def __init__(self, host: str, port: int, why: str) -> None:
        super().__init__(
            f"cannot listen on {host}:{port}: {why}; "
            "stop what uses the port, or set another `port` or `host` in the configuration"
        )
        self.host = host
        self.port = port


class AlreadyRunning(Exception):
    """Another router that is running uses the same state file. The message says which, and what to do."""


# --- configuration


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration file. `path` is like `engines.llama.start_cmd`; `line` counts from 1."""

    message: str
    path: str = ""
    file: str = ""
    line: int | None = None
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        subject = f"{self.path}: " if self.path else ""
        return f"{place}{subject}{self.message}" + (f" – {self.hint}" if self.hint else "")


class ConfigError(Exception):
    """All problems of a configuration at once. `warnings` are no reason to refuse it."""

    def __init__(self, problems: list[Problem], warnings: Sequence[Problem] = ()) -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems = problems
        self.warnings = tuple(warnings)


def printable(text: str, limit: int = 200) -> str:
    """One line of text that is safe in a log or a message: control characters escaped, long ones cut."""
    if len(text) <= limit and text.isprintable():
        return text
    cut = text if len(text) <= limit else text[:limit] + "…"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut)
