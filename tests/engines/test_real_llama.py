"""The same steps with a real llama-server."""

from __future__ import annotations

import asyncio
import time

import pytest
from boxes import SLOT, Box, is_alive

from enginerouter.errors import StartFailed
from llama import model_file, need_llama_server, no_mmap_flags

pytestmark = pytest.mark.real


async def test_a_llama_server_is_started_measured_and_stopped(box: Box) -> None:
    server = await asyncio.to_thread(need_llama_server)
    model = await asyncio.to_thread(lambda: model_file("real", size=256))
    flags = await asyncio.to_thread(no_mmap_flags, server)
    engine = box.engine(
        server, "-m", str(model), "--port", "{port}", "-c", "512", "-t", "1", *flags, ready_check="status==ok"
    )
    await engine.check(SLOT, ())
    await engine.start(SLOT)
    held, pid = await engine.held_bytes(SLOT), engine.pid(SLOT)
    assert held is not None
    assert 240 * 2**20 < held < 600 * 2**20
    before = time.monotonic()
    await engine.stop(SLOT)
    assert time.monotonic() - before < 2
    assert pid is not None
    assert not is_alive(pid)


@pytest.mark.parametrize(
    ("flags", "cause"),
    [(("--frobnicate",), "bad_flag"), (("-m", "{bad}"), "file_missing"), (("--flash-attn", "maybe"), "bad_flag")],
)
async def test_what_a_llama_server_says_is_understood(box: Box, flags: tuple[str, ...], cause: str) -> None:
    server = await asyncio.to_thread(need_llama_server)
    bad = box.folder / "bad.gguf"
    bad.write_bytes(b"no model")
    engine = box.engine(server, "--port", "{port}", *(flag.replace("{bad}", str(bad)) for flag in flags))
    before = time.monotonic()
    with pytest.raises(StartFailed) as caught:
        await engine.start(SLOT)
    assert time.monotonic() - before < 5
    assert caught.value.cause == cause, caught.value.admin_detail


async def test_a_mapped_model_is_not_counted_as_held(box: Box) -> None:
    server = await asyncio.to_thread(need_llama_server)
    model = await asyncio.to_thread(lambda: model_file("real", size=256))
    engine = box.engine(server, "-m", str(model), "--port", "{port}", "-c", "512", "-t", "1")
    await engine.start(SLOT)
    held = await engine.held_bytes(SLOT)
    assert held is not None
    assert held < 200 * 2**20
