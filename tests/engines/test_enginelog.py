"""The log of an engine: its end, since a launch, and its rotation under the writer's hands."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from enginerouter.engines.enginelog import ROTATE_ABOVE_BYTES, EngineLog


@pytest.fixture
def log(tmp_path: Path) -> EngineLog:
    return EngineLog(tmp_path / "logs" / "llama.log")


@pytest.fixture
def writer(log: EngineLog) -> Iterator[int]:
    """The descriptor that the engine writes to."""
    descriptor = log.open_for_child()
    yield descriptor
    os.close(descriptor)


async def test_the_tail_holds_the_last_lines_since_the_mark(log: EngineLog, writer: int) -> None:
    os.write(writer, b"old\n")
    mark = log.mark()
    os.write(writer, b"a\nb\nc\n")
    assert await log.tail(10) == ["old", "a", "b", "c"]
    assert await log.tail(10, mark) == ["a", "b", "c"]
    assert await log.tail(2, mark) == ["b", "c"]
    assert await log.tail(0, mark) == []


async def test_a_missing_log_has_no_lines(tmp_path: Path) -> None:
    log = EngineLog(tmp_path / "none.log")
    assert await log.tail(10, log.mark()) == []
    assert not await log.rotate_if_large()


async def test_bytes_that_are_no_text_do_not_break_it(log: EngineLog, writer: int) -> None:
    os.write(writer, b"\xff\xfe\x00\n")
    assert len(await log.tail(10)) == 1


async def test_only_the_owner_reads_it_and_no_other_child_inherits_it(log: EngineLog, writer: int) -> None:
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600
    assert not os.get_inheritable(writer)


async def test_a_large_log_is_rotated_and_the_engine_writes_on(log: EngineLog, writer: int) -> None:
    assert not await log.rotate_if_large()
    mark = log.mark()
    for turn in range(5):
        os.write(writer, b"x" * ROTATE_ABOVE_BYTES + b"\n")
        os.write(writer, f"end of {turn}\n".encode())
        assert await log.rotate_if_large()
    os.write(writer, b"after\n")
    assert log.path.read_bytes() == b"after\n"
    names = sorted(path.name for path in log.path.parent.iterdir())
    assert names == ["llama.log", "llama.log.1", "llama.log.2", "llama.log.3"]
    assert (log.path.parent / "llama.log.1").read_bytes().endswith(b"end of 4\n")
    assert (log.path.parent / "llama.log.1").stat().st_size <= ROTATE_ABOVE_BYTES
    assert await log.tail(2, mark) == ["end of 4", "after"]


async def test_a_mark_after_a_rotation_hides_what_was_before(log: EngineLog, writer: int) -> None:
    os.write(writer, b"x" * (ROTATE_ABOVE_BYTES + 1) + b"\nbefore\n")
    await log.rotate_if_large()
    mark = log.mark()
    os.write(writer, b"after\n")
    assert await log.tail(10, mark) == ["after"]


async def test_a_log_that_somebody_truncated_is_read_from_its_beginning(log: EngineLog, writer: int) -> None:
    os.write(writer, b"long line\n")
    mark = log.mark()
    os.truncate(log.path, 0)
    os.write(writer, b"new\n")
    assert await log.tail(10, mark) == ["new"]
