"""SIGHUP at a router, a process of its own, that is not up yet."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from router_process import SRC, demo_engine

if not hasattr(signal, "SIGHUP"):
    pytest.skip("no SIGHUP here", allow_module_level=True)


class Starting:
    """A router that tells each module as it imports it. `said` is all that it has said so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said = ""

    async def says(self, text: str) -> str:
        assert self.process.stderr is not None
        line = ""
        async with asyncio.timeout(20):
            while text not in line:
                line = (await self.process.stderr.readline()).decode()
                assert line, f"it ended before it said {text!r}: {self.said[-2000:]}"
                self.said += line
        return line


@pytest.fixture
async def starting(tmp_path: Path) -> AsyncIterator[Starting]:
    config = {"port": 0, "log_file": None, "shutdown_timeout_s": 0.1, "engines": {"a": demo_engine("a")}}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-X", "importtime", "-m", "enginerouter",
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(SRC)}, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    yield Starting(process)
    if process.returncode is None:
        process.kill()
    await process.stderr.read()
    await process.wait()


async def test_hangups_before_it_is_up_end_nothing_and_are_one_reload_once_it_is(starting: Starting) -> None:
    for module in ("yaml", "enginerouter.web.serve"):
        await starting.says(f" {module}\n")
        starting.process.send_signal(signal.SIGHUP)
    await starting.says("listening on")
    assert "reloaded" not in starting.said
    await starting.says("the configuration was reloaded: nothing has changed")
    starting.process.send_signal(signal.SIGHUP)
    await starting.says("the configuration was reloaded")
    starting.process.send_signal(signal.SIGTERM)
    await starting.says("stopped")
    assert starting.said.count("the configuration was reloaded") == 2
    assert await starting.process.wait() == 0


async def test_without_one_nothing_is_reloaded(starting: Starting) -> None:
    await starting.says("listening on")
    starting.process.send_signal(signal.SIGTERM)
    await starting.says("stopped")
    assert "reloaded" not in starting.said
