"""A request along a chain: one try after the other, until one begins to answer. `routing.walk` decides.

A try is an exchange whose answer is looked at before it becomes the client's. Until then the client's status line is
held, unless keep-alives had to begin; a client that has only had keep-alives can still be answered by the next target.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import ClientResponse, web

from enginerouter.dialects.beginnings import Beginning, ErrorSaid, FirstEvent, error_said, status_said
from enginerouter.dialects.openai import engine_error_fields
from enginerouter.errors import BadRequest, EngineUnavailable, NotBuilt, RouterError, UpstreamFailed, printable
from enginerouter.proxy.downstream import Downstream
from enginerouter.proxy.headers import VIA
from enginerouter.routing import walk
from enginerouter.routing.health import Call
from enginerouter.routing.target import Chain, Target
from enginerouter.routing.walk import Attempt, Failure
from enginerouter.swap.model import Lease
from enginerouter.web.answering import fail, is_packed, waiting_client, weigh
from enginerouter.web.ask import Ask
from enginerouter.web.edge import EdgeCall
from enginerouter.web.exchange import ERROR_BYTES, STREAMS, WHOLE_BYTES
from enginerouter.web.keys import Identity
from enginerouter.web.surroundings import Surroundings
from enginerouter.web.telemetry import NOBODY, Record
from enginerouter.web.translating import AnyExchange

log = logging.getLogger(__name__)


class PassedOver(EngineUnavailable):
    """A target that was not asked after all."""


class WouldTakeLonger(PassedOver):
    """Queue and swap of a target take longer than its chain waits. `retry_after_s`: until it may be there."""

    code = walk.SLOW


class WouldDisturb(PassedOver):
    """A target that failed before is not tried again at the cost of one that serves."""

    code = walk.CIRCUIT_OPEN


class NoAnswer(UpstreamFailed):
    """What the engine said is not the answer, but a reason to ask the next target."""

    def __init__(self, engine: str, message: str, failure: Failure) -> None:
        super().__init__(engine, message)
        self.failure = failure


class Try(AnyExchange):
    """One target of a chain. `has_begun`: its answer is the client's, and nothing can be taken back."""

    has_begun = False

    def __init__(
        self,
        around: Surroundings,
        call: EdgeCall,
        ask: Ask,
        target: Target,
        record: Record,
        client: Downstream,
        verdict: Call,
        chain: Chain,
    ) -> None:
        super().__init__(around, call, ask, target, record, client, verdict)
        self._chain = chain
        # Only the first target: the client has waited through all of them.
        self._holds_anew = record.tries <= 1 or not client.is_beating

    async def answer(self) -> web.StreamResponse:
        """Raises RouterError; NoAnswer among them, if the engine said one that goes on."""
        await self._prepare()
        if self._may_be_kept and (given := await self._give_kept()) is not None:
            self.has_begun = True
            self._around.telemetry.resolved(self._target)
            return given
        lease = self._coordinator.try_lease(self._target.slot) or await self._queue()
        return await self._relay_with(lease)

    async def _prepare(self) -> None:
        """What one engine cannot be asked in its dialect, the next one may be, as with what it refuses itself."""
        try:
            await super()._prepare()
        except (BadRequest, NotBuilt) as error:
            if self._chain.alias.on_mismatch != "next":
                raise
            failure = Failure(walk.MISMATCH, status=error.status, is_untouched=True)
            raise NoAnswer(self._target.engine, error.message, failure) from error

    # --- the wait

    async def _queue(self) -> Lease:
        """As for any request; but a trial disturbs nobody, and the chain may not want to wait for a swap."""
        slot = self._target.slot
        if self._is_trial and self._coordinator.disturbs(slot, within_s=self._around.health.back_off_s):
            raise WouldDisturb(f"{self._target.label} is not tried again at the cost of an engine in use")
        limit_s = self._chain.alias.go_on_after_s
        if limit_s is None or self._around.naming.is_remote(self._target):
            return await super()._queue()
        eta_s = self._coordinator.known_eta_s(slot)
        if eta_s is not None and walk.is_too_slow(self._chain, eta_s):
            raise self._too_slow(limit_s, eta_s)
        try:
            async with asyncio.timeout(limit_s):
                return await super()._queue()
        except TimeoutError:
            raise self._too_slow(limit_s, self._coordinator.eta_s(slot)) from None

    @property
    def _is_trial(self) -> bool:
        """Whether this try finds out if something broken has healed: the target itself, or its start."""
        slot = self._coordinator.slots[self._target.slot]
        return self._verdict.is_trial or slot.circuit.failures >= max(1, slot.spec.max_restarts)

    def _too_slow(self, limit_s: float, eta_s: float) -> WouldTakeLonger:
        """The target is passed over, and wished for: it starts when that costs nobody anything."""
        self._coordinator.wish(self._target.slot)
        return WouldTakeLonger(
            f"{self._target.label} would take {eta_s:.0f} s, and the chain waits {limit_s:g} s (go_on_after_s)",
            retry_after_s=eta_s,
        )

    # --- the look at the answer

    async def _answered(self, answer: ClientResponse, lease: Lease) -> web.StreamResponse:
        await self._look(answer)
        await self._client.pause()
        if answer.status < 400:
            self._check_form(answer)
        self.has_begun = True
        self._around.telemetry.resolved(self._target)
        self._stop_clock()
        self._clock = None
        return await super()._answered(answer, lease)

    async def _look(self, answer: ClientResponse) -> None:
        """Read as much as tells an answer from a failure. Raises NoAnswer, or UpstreamFailed if it breaks off."""
        if answer.status >= 400:
            self._seen = await self._read(answer, at_most=ERROR_BYTES)
            self._judge(answer.status, engine_error_fields(answer.status, self._seen), answer)
            return
        self._check_form(answer)
        kind = STREAMS.get(answer.content_type)
        if kind is None or is_packed(answer):
            await self._look_at_whole(answer)
        else:
            await self._look_at_stream(answer, FirstEvent(kind))

    async def _look_at_stream(self, answer: ClientResponse, first: FirstEvent) -> None:
        found: Beginning | None = None
        seen = bytearray()
        while found is None:
            chunk = await self._piece(answer)
            if not chunk or len(seen) > WHOLE_BYTES:
                how = "ended" if not chunk else f"went on for {len(seen)} bytes"
                raise UpstreamFailed(self._target.engine, f"the stream of {self._target.label} {how} without an answer")
            seen += chunk
            found = first.feed(chunk)
        self._seen = bytes(seen)
        if isinstance(found, ErrorSaid):
            self._judge(found.status, found.fields, answer)

    async def _look_at_whole(self, answer: ClientResponse) -> None:
        """Up to a size the body is awaited: until then its end can be missing, or be an error with status 200."""
        while len(self._seen) <= WHOLE_BYTES and (chunk := await self._piece(answer)):
            self._seen += chunk
            self._stop_clock()
        if is_packed(answer) or not self._ask.answers_json:
            return
        said = _object_in(self._seen)
        if not said:
            self._go_on_past_nonsense(answer)
        elif (fields := error_said(said)) is not None:
            self._judge(status_said(fields), fields, answer)

    def _go_on_past_nonsense(self, answer: ClientResponse) -> None:
        """A 200 with a page, or with nothing: a captive portal, or another server. Raises NoAnswer if that goes on."""
        failure = Failure("no_answer", "failed", answer.status)
        weigh(self._verdict, failure)
        if self.may_go_on(failure):
            kind = printable(answer.content_type, 60)
            raise NoAnswer(self._target.engine, f"it answered {answer.status} with {kind} that is no answer", failure)

    def _judge(self, status: int, error: Mapping[str, Any], answer: ClientResponse) -> None:
        """Raises NoAnswer if the next target may be asked; else what was said is the client's."""
        failure = walk.of_answer(
            status,
            error,
            has_our_key=self._around.naming.has_our_key(self._target),
            takes_mismatch=self._chain.alias.on_mismatch == "next",
            retry_after_s=walk.retry_after_said(answer.headers),
            cool_downs=self._around.cool_downs,
        )
        weigh(self._verdict, failure)
        if failure is not None and self.may_go_on(failure):
            self._log_refusal(answer, self._seen)
            said = printable(str(error.get("message", "")), 200)
            raise NoAnswer(self._target.engine, f"it answered {status}: {said}", failure)

    def may_go_on(self, failure: Failure) -> bool:
        repeats = self._chain.alias.retry_unsafe
        return walk.may_go_on(failure, repeatable=self._ask.is_repeatable, retries_unsafe=repeats)


def _object_in(body: bytes) -> dict[str, Any] | None:
    """The JSON object that a body is, or None. Of a large one the beginning tells: errors are short."""
    if len(body) > ERROR_BYTES:
        return {"is_large": True} if body.lstrip()[:1] == b"{" else None
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def passed_over(
    around: Surroundings, chain: Chain, target: Target, identity: Identity, path: str, via: Sequence[str] = ()
) -> str:
    """Why a target is not asked for such a request, before its health is looked at; "" if it is."""
    return walk.pass_over(
        target,
        chain,
        path=path,
        is_fenced=around.naming.is_fenced(target, identity),
        is_unconfigured=around.naming.is_unconfigured(target),
        instance=around.upstreams[target.engine].instance,
        via=via,
    )


class Walking:
    """One request, one chain."""

    def __init__(self, around: Surroundings, call: EdgeCall, ask: Ask, chain: Chain, record: Record) -> None:
        self._around = around
        self._call = call
        self._ask = ask
        self._chain = chain
        self._record = record
        self._attempts: list[Attempt] = []
        # Of the attempts, those before this one were counted as fallbacks.
        self._counted = 0
        # When a target that did not answer may be able to, where that is known.
        self._waits_s: list[float | None] = []
        self._try: Try | None = None
        self._client = waiting_client(around.keepalive, call, ask, self._progress, around.tasks)

    def _progress(self) -> str:
        return self._try.progress() if self._try is not None else f"looking for a target of {self._chain.asked}"

    async def run(self) -> web.StreamResponse:
        """The answer of the first target that has one. Raises RouterError while nothing was sent."""
        self._record.tries = 0
        try:
            return await self._walk()
        except RouterError as error:
            return await fail(self._client, self._call, self._ask, self._record, error)
        finally:
            self._client.stop_beat()
            self._record.keepalives = self._client.keepalives

    async def _walk(self) -> web.StreamResponse:
        for target in self._chain.targets:
            verdict = self._admitted(target)
            if verdict is None:
                continue
            self._note_try(target)
            attempt = self._try = Try(
                self._around, self._call, self._ask, target, self._record, self._client, verdict, self._chain
            )
            began_at = time.monotonic()
            try:
                return await attempt.answer()
            except RouterError as error:
                failure = None if attempt.has_begun else self._failure(attempt, error)
                if failure is None:
                    weigh(verdict, walk.of_error(error), error)
                    raise
                weigh(verdict, failure, error)
                self._went_wrong(target, error, failure, time.monotonic() - began_at)
            finally:
                verdict.dropped()
        raise self._nothing_left()

    def _failure(self, attempt: Try, error: RouterError) -> Failure | None:
        """What lets the walk go on; None if it ends with this error."""
        if self._around.coordinator.is_closing:
            return None
        failure = error.failure if isinstance(error, NoAnswer) else walk.of_error(error)
        return failure if failure is not None and attempt.may_go_on(failure) else None

    def _admitted(self, target: Target) -> Call | None:
        """The right to try a target, or a note of why it is passed over."""
        via = walk.instances(self._call.request.headers.get(VIA, ""))
        reason = passed_over(self._around, self._chain, target, self._call.identity, self._call.raw_path, via)
        if not reason:
            verdict = self._around.health.admit(target.engine, target.model_id)
            if verdict is not None:
                return verdict
            circuit = self._around.health.state(target.engine, target.model_id)
            reason = walk.closed_by(circuit)
            self._waits_s.append(circuit.retry_after_s)
        self._attempts.append(Attempt(target, reason, was_tried=False))
        return None

    def _note_try(self, target: Target) -> None:
        self._record.tries += 1
        self._record.label = target.label
        self._count_fallbacks(target)

    def _went_wrong(self, target: Target, error: RouterError, failure: Failure, seconds: float) -> None:
        """Note, say and count why the walk goes on."""
        was_tried = not isinstance(error, PassedOver)
        if not was_tried:
            self._record.tries -= 1
        self._waits_s.append(failure.cool_down_s or error.retry_after_s)
        self._attempts.append(Attempt(target, failure.reason, failure.status, seconds, was_tried))
        log.log(
            logging.WARNING if was_tried else logging.INFO,
            "%s %s: the chain goes on past %s after %.2f s (%s): %s",
            self._record.request_id,
            printable(self._chain.asked),
            target.label,
            seconds,
            failure.reason,
            error.message,
        )

    def _count_fallbacks(self, to: Target | None) -> None:
        for attempt in self._attempts[self._counted :]:
            self._around.telemetry.fell_back(attempt.target, to, attempt.reason)
        self._counted = len(self._attempts)

    def _nothing_left(self) -> RouterError:
        self._count_fallbacks(None)
        self._record.label = NOBODY
        reachable = [a.target for a in self._attempts if a.reason != walk.FENCED]
        circuits = self._around.health.retry_after_s((t.engine, t.model_id) for t in reachable)
        return walk.nothing_left(
            self._chain,
            self._attempts,
            names_fenced=self._call.identity.is_admin,
            retry_after_s=walk.seconds_to_retry([circuits, *self._waits_s]),
        )
