"""What happened, for the log and `/metrics`: one record per request, and the observer of swaps and phases.

Label values come from configured names only; a model name that a client made up is counted as "other".
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from functools import partial
from types import TracebackType
from typing import Any

from enginerouter.cache.answers import AnswerCache
from enginerouter.cache.store import StoreState
from enginerouter.dialects.base import Usage
from enginerouter.errors import RouterError, printable
from enginerouter.metrics import Labels, Registry
from enginerouter.routing.target import Target
from enginerouter.slots import SlotId
from enginerouter.swap.coordinator import Coordinator
from enginerouter.swap.memory import MemorySource
from enginerouter.swap.model import SwapReport
from enginerouter.swap.phases import Phase
from enginerouter.web.hub import Event, EventHub
from enginerouter.web.logs import RequestLine
from enginerouter.web.shapes.control import LastSwap

log = logging.getLogger("enginerouter.requests")

OTHER = "other"
# The target of a request that no target of its chain could answer.
NOBODY = "none"
CLIENT_LEFT = 499
SWAP_S = (0.5, 1, 2, 5, 10, 20, 30, 45, 60, 90, 120, 180, 240, 300)
SETTLE_S = (0.05, 0.25, 0.5, 1, 2, 3, 5, 8, 12, 16, 20, 25)
REQUEST_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
COUNTS = (0, 1, 2, 4, 8, 16, 32, 64)


class Record:
    """One request on its way. Times are monotonic seconds.

    `status` is what the client got (499: it left), or would have got had its stream not begun with 200.
    """

    __slots__ = (
        "asked",
        "began_at",
        "cache",
        "cached_bytes",
        "dialect",
        "error",
        "first_byte_at",
        "is_declared",
        "is_stream",
        "keepalives",
        "label",
        "queue_s",
        "request_id",
        "status",
        "swap_s",
        "tries",
        "usage",
    )

    def __init__(self, dialect: str, request_id: str, began_at: float) -> None:
        self.dialect = dialect
        self.request_id = request_id
        self.began_at = began_at
        self.asked = ""
        self.label = ""
        # Whether the names are the configuration's: only those become labels of metrics.
        self.is_declared = True
        self.status = 0
        self.queue_s = 0.0
        self.swap_s = 0.0
        self.first_byte_at: float | None = None
        self.keepalives = 0
        # "hit" or "miss" where the answer may be kept.
        self.cache = ""
        self.cached_bytes = 0
        # Targets that were tried, the one that answers among them.
        self.tries = 1
        self.error: RouterError | None = None
        # Whether an answer in pieces was asked for; and the tokens it cost, where the engine has said so.
        self.is_stream = False
        self.usage: Usage | None = None

    def tokens_per_s(self, now: float) -> float | None:
        """How fast the answer came: by the engine's clock, else by ours; without a stream the prompt's time counts."""
        if self.usage is None or not self.usage.completion:
            return None
        since = self.first_byte_at if self.is_stream and self.first_byte_at else self.began_at + self.queue_s
        seconds = self.usage.completion_s or now - since
        return self.usage.completion / seconds if seconds > 0 else None

    def name(self, target: Target) -> None:
        """Note what the request is for."""
        self.asked, self.label, self.is_declared = target.asked, target.label, target.is_declared


class Telemetry:
    """The metrics of one router; an `Observer` of its coordinator."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.hub = EventHub()
        self.last_swap: dict[SlotId, SwapReport] = {}
        # When each of them ended, in Unix seconds.
        self.swapped_at: dict[SlotId, float] = {}
        self.listeners: list[Callable[[SlotId, Phase], None]] = []
        self._swap_s = registry.histogram("swap_duration_seconds", "Whole swaps, from decision to ready.", SWAP_S)
        self._phase_s = registry.histogram(
            "swap_phase_duration_seconds", "Steps of swaps.", SWAP_S, label_names=("phase",)
        )
        self._settle_s = registry.histogram(
            "memory_settle_seconds", "Waits until freed memory was really back.", SETTLE_S
        )
        self._verdicts = registry.counter("memory_settle_total", "Settle waits by verdict.", ("verdict",))
        self._in_flight = registry.histogram("in_flight_at_swap_start", "Requests that a swap had to drain.", COUNTS)
        self._swaps = registry.counter("swap_total", "Swaps and unloads by how they ended.", ("from", "to", "result"))
        self._crashes = registry.counter("engine_crashes_total", "Engines that died while they served.", ("engine",))
        self._starts = registry.counter("engine_starts_total", "Starts of engines, restarts among them.", ("engine",))
        self._requests = registry.counter(
            "requests_total", "Requests by dialect, target and status.", ("dialect", "requested", "target", "status")
        )
        self._wait_s = registry.histogram("queue_wait_seconds", "Time spent waiting for a lease.", REQUEST_S)
        self._first_s = registry.histogram(
            "time_to_first_byte_seconds", "From the request to the first byte of its answer.", REQUEST_S
        )
        self._total_s = registry.histogram("request_duration_seconds", "Whole requests.", REQUEST_S)
        self._cached = registry.counter(
            "cache_requests_total", "Requests whose answers may be kept, by whether one was.", ("target", "result")
        )
        self._cached_bytes = registry.counter("cache_hit_bytes_total", "Bytes of kept answers given.", ("target",))
        self._resolved = registry.counter("alias_resolved_total", "Answers by alias and target.", ("alias", "target"))
        self._fallbacks = registry.counter(
            "fallback_total",
            "Targets of chains that did not answer, the one asked after them, and why.",
            ("from_model", "to_model", "reason"),
        )
        self._tokens = registry.counter(
            "tokens_total", "Tokens of prompts (in) and answers (out), as engines count them.", ("direction", "target")
        )
        self._frames = registry.counter("keepalive_frames_total", "Keep-alive frames sent to waiting clients.")

    def watch(self, coordinator: Coordinator) -> None:
        """Gauges that are read from the coordinator when scraped."""
        slots = coordinator.slots

        def states() -> dict[Labels, float]:
            return {(str(s.id), p.value): float(s.phase is p) for s in slots.values() for p in Phase}

        def uptimes() -> dict[Labels, float]:
            now = time.monotonic()
            return {(str(s.id),): now - s.ready_at if s.phase is Phase.READY else 0.0 for s in slots.values()}

        gauge = self.registry.gauge
        gauge("engine_state", "1 for the phase a slot is in.", ("engine", "phase"), read=states)
        gauge("engine_uptime_seconds", "Time since the slot became ready; 0 when it is not.", ("engine",), read=uptimes)
        gauge("memory_held", "1 while memory is kept free for another program (/admin/hold).",
              read=lambda: {(): float(coordinator.current_hold is not None)})  # fmt: skip
        gauge("queue_depth", "Requests that wait for a lease.", read=lambda: {(): float(coordinator.queued)})
        gauge(
            "in_flight",
            "Requests that hold a lease.",
            ("engine",),
            read=lambda: {(str(s.id),): float(len(s.leases)) for s in slots.values()},
        )

    def watch_memory(self, memory: MemorySource) -> None:
        """What the source says of itself, as it was last read: a scrape asks no driver."""

        def available() -> dict[Labels, float]:
            now = memory.available()
            return {} if now is None else {(): float(now)}

        gauge = self.registry.gauge
        gauge("memory_source_info", "1 for the source that memory is read from.", ("source",),
              read=lambda: {(memory.name,): 1.0})  # fmt: skip
        gauge("memory_available_bytes", "Memory that a new engine could take; nothing where unreadable.",
              read=available)  # fmt: skip

    def watch_cache(self, cache: Callable[[], AnswerCache | None]) -> None:
        """`cache`: that of the moment, if there is one."""

        def of(read: Callable[[StoreState], tuple[Labels, float | None]]) -> Callable[[], dict[Labels, float]]:
            def values() -> dict[Labels, float]:
                now = cache()
                labels, value = read(now.state()) if now is not None else ((), None)
                return {} if value is None else {labels: float(value)}

            return values

        gauge = self.registry.gauge
        gauge("cache_up", "1 while the store of kept answers works.", ("store",),
              read=of(lambda state: ((state.name,), state.is_up)))  # fmt: skip
        gauge("cache_answers", "Answers kept in this process.", read=of(lambda state: ((), state.entries)))
        gauge("cache_bytes", "Bytes of the answers kept in this process.", read=of(lambda state: ((), state.bytes)))

    # --- the observer

    def slot_moved(self, slot: SlotId, before: Phase, after: Phase, reason: str) -> None:
        if after is Phase.STARTING:
            self._starts.inc((str(slot),))
        elif after is Phase.CRASHED:
            self._crashes.inc((str(slot),))
        moved = {"slot": str(slot), "before": before.value, "after": after.value, "reason": reason}
        self.hub.publish(Event("phase", moved, slots=(slot,), admin_only=("reason",)))
        for listener in self.listeners:
            listener(slot, after)

    def swap_ended(self, report: SwapReport) -> None:
        plan = report.plan
        to = str(plan.target) if plan.target is not None else "none"
        # A failed start frees its own target; that is no swap from it.
        freed = [str(s) for s in report.freed if s != plan.target]
        gone = freed[0] if len(freed) == 1 else "several" if freed else "none"
        self._swaps.inc((gone, to, report.result))
        slots = (plan.target,) if plan.target is not None else tuple(report.freed)
        at = round(time.time(), 3)
        swapped = {"target": to, **swap_fields(report, at)}
        self.hub.publish(Event("swap", swapped, slots=slots, admin_only=("freed", "error")), is_remembered=True)
        if report.settled is not None:
            self._settle_s.observe(report.settled.seconds)
            self._verdicts.inc((report.settled.verdict.value,))
        if plan.target is None or report.result == "called_off":
            return
        self.last_swap[plan.target] = report
        self.swapped_at[plan.target] = at
        if report.result == "ok":
            self._swap_s.observe(report.total_s)
        self._in_flight.observe(report.in_flight_at_start)
        for step, seconds in report.seconds.items():
            self._phase_s.observe(seconds, (step,))

    # --- requests

    def resolved(self, target: Target) -> None:
        """An alias led to a target."""
        self._resolved.inc((target.asked, _label(target)))

    def fell_back(self, from_target: Target, to: Target | None, reason: str) -> None:
        """A chain went past a target; `to` None: nothing was left."""
        self._fallbacks.inc((_label(from_target), _label(to) if to is not None else NOBODY, reason))

    def ended(self, record: Record) -> None:
        """Count a request and write its line."""
        now = time.monotonic()
        total = now - record.began_at
        status = record.status
        # An unknown model has no label: what the client called it stays out of the metrics.
        requested = record.asked if record.label and record.is_declared else OTHER
        target = record.label or OTHER
        if not record.is_declared:
            target = f"{record.label.partition('/')[0]}/{OTHER}"
        self._requests.inc((record.dialect, requested, target, str(status)))
        if record.cache:
            self._cached.inc((target, record.cache))
            if record.cached_bytes:
                self._cached_bytes.inc((target,), record.cached_bytes)
        if (usage := record.usage) is not None:
            if usage.prompt:
                self._tokens.inc(("in", target), usage.prompt)
            if usage.completion:
                self._tokens.inc(("out", target), usage.completion)
        self._total_s.observe(total)
        if record.label:
            self._wait_s.observe(record.queue_s)
        first = ""
        if record.first_byte_at is not None:
            first_s = record.first_byte_at - record.began_at
            self._first_s.observe(first_s)
            first = f" first byte {first_s:.3f} s,"
        if record.cache:
            first += f" cache {record.cache},"
        if record.keepalives:
            self._frames.inc(amount=record.keepalives)
        if record.error is None:
            self.hub.publish_made("request", partial(_request_event, record, total, time.time()))
        else:  # its traceback would keep the request's frames, and so its body
            self.hub.publish(_request_event(record, total, time.time()), is_remembered=True)
        if not log.isEnabledFor(logging.INFO):
            return
        error = record.error
        log.handle(
            RequestLine(
                "%s %s -> %s %s %d queue %.3f s,%s total %.3f s%s",
                record.request_id,
                printable(record.asked) or "-",
                record.label or "-",
                record.dialect,
                status,
                record.queue_s,
                first,
                total,
                f" ({error.code}: {error.message})" if error is not None else "",
            )
        )


class Recorded:
    """The record of a request: how it ended is noted, and told, whatever ends it."""

    __slots__ = ("_record", "_telemetry")

    def __init__(self, record: Record, telemetry: Telemetry) -> None:
        self._record = record
        self._telemetry = telemetry

    def __enter__(self) -> Record:
        return self._record

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, RouterError):
            self._record.status, self._record.error = error.status, error
        elif isinstance(error, asyncio.CancelledError | ConnectionError):
            self._record.status = CLIENT_LEFT
        self._telemetry.ended(self._record)


def swap_fields(
    report: SwapReport, at: float, freed: Collection[SlotId] | None = None, *, is_admin: bool = True
) -> LastSwap:
    """A swap that ended `at`, in Unix seconds, as `/status` and `/events` show it; of what it freed only `freed`."""
    return {
        "at": at,
        "result": report.result,
        "total_s": round(report.total_s, 3),
        "seconds": {k: round(v, 3) for k, v in report.seconds.items()},
        "settle": report.settled.verdict.value if report.settled else None,
        "freed": [str(s) for s in report.freed if freed is None or s in freed],
        "error": (report.error or None) if is_admin else None,
    }


def _request_event(record: Record, total_s: float, at: float) -> Event:
    return Event("request", request_fields(record, total_s, at), names=(record.asked,), served_by=record.label)


def request_fields(record: Record, total_s: float, at: float) -> dict[str, Any]:
    """A request that has ended, as `/events` shows it. `at`: when, in Unix seconds."""
    first = record.first_byte_at
    tok_s = record.tokens_per_s(record.began_at + total_s)
    return {
        "at": round(at, 3),
        "id": record.request_id,
        "model": record.asked,
        "target": record.label,
        "dialect": record.dialect,
        "status": record.status,
        "queue_ms": round(record.queue_s * 1000),
        "swap_ms": round(record.swap_s * 1000),
        "first_byte_ms": round((first - record.began_at) * 1000) if first is not None else None,
        "total_ms": round(total_s * 1000),
        "tokens_in": record.usage.prompt if record.usage is not None else None,
        "tokens_out": record.usage.completion if record.usage is not None else None,
        "tok_s": round(tok_s, 1) if tok_s is not None else None,
        "error": record.error.code if record.error is not None else None,
    }


def _label(target: Target) -> str:
    """`engine/model`, without what only a client has named."""
    return target.label if target.is_declared else f"{target.engine}/{OTHER}"
