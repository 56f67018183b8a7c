"""`first_byte_timeout_s`: how long an engine may be silent before its answer begins."""

from __future__ import annotations

import asyncio

from engine_server import SSE_HEAD, event, sse
from router_kit import MakeRouter, chat

SHORT = {"a": {"first_byte_timeout_s": 0.1}}


async def test_an_engine_that_sends_no_byte_in_time_is_a_504_that_names_it(make_router: MakeRouter) -> None:
    router = await make_router(SHORT)
    await router.load()
    router.a.server.script = [asyncio.Event()]
    answer = await router.ask(chat())
    assert answer.status == 504
    assert answer.error["code"] == "first_byte_timeout"
    assert "a/a" in answer.error["message"]
    assert "0.1 s" in answer.error["message"]


async def test_headers_alone_are_no_first_byte(make_router: MakeRouter) -> None:
    router = await make_router(SHORT)
    await router.load()
    router.a.server.script = [SSE_HEAD, asyncio.Event()]
    answer = await router.ask(chat(stream=True))
    assert b"first_byte_timeout" in answer.body


async def test_after_the_first_byte_an_engine_may_take_its_time(make_router: MakeRouter) -> None:
    router = await make_router(SHORT)
    await router.load()
    router.a.server.script = sse(event("one"), 0.25, event("two"))
    answer = await router.ask(chat(stream=True))
    assert answer.is_whole
    assert b"two" in answer.body
