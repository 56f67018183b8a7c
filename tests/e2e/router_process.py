"""A router that is a process of its own, before engines that a test plays itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

SRC = Path(__file__).resolve().parents[2] / "src"


def demo_engine(name: str, *, tokens_per_s: int = 20) -> dict[str, Any]:
    command = [sys.executable, "-m", "enginerouter.demo.engine", "--port", "{port}", "--name", name]
    options = ["--memory-mib", "1", "--load-s", "0", "--tokens-per-s", str(tokens_per_s)]
    return {"type": "generic_process", "start_cmd": [*command, *options]}


@contextlib.asynccontextmanager
async def serving(
    folder: Path, engines: Mapping[str, Any], **settings: Any
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """`python -m enginerouter` in `folder`; gives the process and its port. At the end it is killed, if it runs.

    Its swaps wait for no further work of the engine in the way.
    """
    quick = {"shutdown_timeout_s": 0.5, "swap_min_residency_s": 0, "swap_linger_s": 0}
    config = {"port": 0, "log_file": None, **quick, "engines": engines, **settings}
    (folder / "config.yaml").write_text(json.dumps(config))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "enginerouter",
        cwd=folder, env={**os.environ, "PYTHONPATH": str(SRC)}, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        async with asyncio.timeout(15):
            line = b""
            while b"listening on" not in line:
                line = await process.stderr.readline()
                assert line, "it ended before it listened"
        yield process, int(line.split(b"127.0.0.1:")[1].split(b",")[0])
    finally:
        if process.returncode is None:
            process.kill()
        await process.stderr.read()
        await process.wait()
