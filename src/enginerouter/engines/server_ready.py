"""When a server that is always on may be sent requests: what it answers at its health path, asked until it is so."""

from __future__ import annotations

import asyncio
import time

from enginerouter.config.engines import EngineSettings
from enginerouter.engines.http_control import ControlClient, ControlFailed
from enginerouter.engines.probe import ReadyRule, gap_s, judge
from enginerouter.errors import StartFailed, StartTimedOut


async def see_ready(client: ControlClient, settings: EngineSettings, path: str, began_at: float) -> None:
    """Raises StartFailed when the server is gone, StartTimedOut after `start_timeout_s` since `began_at`.

    An answer of 200 that says an error is none: LM Studio says so of every path it does not know.
    """
    rule = ReadyRule(path, settings.ready_status, settings.ready_check, settings.ready_probe_timeout_s)
    name = settings.name
    while True:
        try:
            said = await client.get(path, timeout_s=settings.ready_probe_timeout_s)
        except ControlFailed as failed:
            saw = failed.sentence
            if failed.is_refused:
                raise StartFailed(name, f"engine {name!r} cannot be started: its server is gone: {saw}") from failed
        else:
            answer, problem = judge(rule, said.status, said.body), said.problem()
            if answer.is_ready and (problem is None or settings.ready_status >= 300):
                return
            saw = problem or answer.saw
        elapsed_s = time.monotonic() - began_at
        if elapsed_s >= settings.start_timeout_s:
            limit_s = settings.start_timeout_s
            raise StartTimedOut(name, f"engine {name!r} was not ready at {path} within {limit_s:g} s: {saw}")
        await asyncio.sleep(gap_s(elapsed_s))
