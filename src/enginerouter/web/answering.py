"""What exchanges and walks share of the client's side: how it begins to wait, how an answer of an engine looks, and the
end that nobody wanted."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import ClientResponse, hdrs, web
from multidict import istr

from enginerouter.dialects.base import Fields
from enginerouter.dialects.openai import error_fields
from enginerouter.errors import RouterError
from enginerouter.proxy.downstream import Downstream, KeepAlive
from enginerouter.routing import walk
from enginerouter.routing.health import Call
from enginerouter.routing.walk import Failure
from enginerouter.tasks import TaskGroup
from enginerouter.web.ask import Ask
from enginerouter.web.edge import EdgeCall
from enginerouter.web.telemetry import Record

KEEPALIVE = istr("X-EngineRouter-Keepalive")


def weigh(verdict: Call, failure: Failure | None, cause: BaseException | None = None) -> None:
    """Tell health what came of a call."""
    if failure is None or failure.weight == "none":
        verdict.dropped()
    elif failure.weight == "failed":
        verdict.failed(failure.reason, cause)
    else:
        is_ours = failure.reason == walk.KEY_REFUSED
        verdict.cool_down(failure.cool_down_s, failure.reason, needs_operator=is_ours)


def waiting_client(
    rules: KeepAlive, call: EdgeCall, ask: Ask, progress: Callable[[], str], tasks: TaskGroup
) -> Downstream:
    """The client's side of a request, before anything was sent."""
    mode = rules.mode(is_stream=ask.wants_stream, may_pad=ask.answers_json, asked=call.request.headers.get(KEEPALIVE))
    return Downstream(call.request, rules, mode, progress, tasks, ask.dialect)


async def fail(client: Downstream, call: EdgeCall, ask: Ask, record: Record, error: RouterError) -> web.StreamResponse:
    """The end that nobody wanted: as an HTTP error while that can be, then in-band.

    An event stream says what happened; anything else that has begun is cut, never ended tidily.
    """
    await client.pause()
    if not client.is_committed:
        raise error
    record.status, record.error = error.status, error
    if not client.is_event_stream:
        raise error
    fields = error_fields(error, is_admin=call.identity.is_admin, request_id=call.request_id)
    return await end_stream(client, ask, error.status, fields)


async def end_stream(client: Downstream, ask: Ask, status: int, fields: Fields) -> web.StreamResponse:
    """Say in the stream what went wrong. `status` is what the answer would have had."""
    await client.write_last(ask.dialect.error_frame(ask.path, status, fields))
    return client.cut() if ask.dialect.cuts_after_error else await client.finish()


def is_framed(answer: ClientResponse) -> bool:
    """Whether the answer says where it ends. Else it ends with its connection, and a crash looks the same."""
    headers = answer.headers
    return hdrs.CONTENT_LENGTH in headers or headers.get(hdrs.TRANSFER_ENCODING, "").lower() == "chunked"


def is_packed(answer: ClientResponse) -> bool:
    """Whether its bytes mean nothing without a Content-Encoding, which is too late to send."""
    return answer.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() not in ("", "identity")
