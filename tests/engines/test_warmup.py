"""`warmup`: one tiny request before the engine counts as ready."""

import contextlib
import sys
from pathlib import Path

import pytest

from enginerouter.config.load import load_text
from enginerouter.engines.directory import SlotDirectory
from enginerouter.engines.registry import build_engines
from enginerouter.errors import StartFailed
from enginerouter.slots import SlotId
from enginerouter.state import StateFile

SLOT = SlotId("demo")


@contextlib.asynccontextmanager
async def engine_with_warmup(folder: Path, *flags: str):
    start = [sys.executable, "-m", "enginerouter.demo.engine", "--port", "{port}", "--name", "demo", *flags]
    start += ["--memory-mib", "1", "--load-s", "0.1", "--tokens-per-s", "0"]
    text = f"engines: {{demo: {{type: generic_process, warmup: true, start_cmd: {start!r}}}}}"
    config = load_text(text, base_dir=folder).config
    state = StateFile(folder / "state.json")
    engine = build_engines(config.engines, state, folder, SlotDirectory(state.router_id), {"demo": "demo"})["demo"]
    try:
        yield engine
    finally:
        await engine.stop(SLOT)
        await engine.close()
        await state.close()


async def test_the_engine_has_answered_one_request_before_it_is_ready(tmp_path, caplog):
    async with engine_with_warmup(tmp_path) as engine:
        with caplog.at_level("INFO"):
            await engine.start(SLOT)
    assert "the answer to its warm-up: 200" in caplog.text


async def test_an_engine_that_dies_of_its_first_request_fails_to_start(tmp_path):
    """Its connection breaks before its exit is seen; it must not count as ready in between."""
    async with engine_with_warmup(tmp_path, "--fail-after-tokens", "0") as engine:
        with pytest.raises(StartFailed, match="demo"):
            await engine.start(SLOT)
