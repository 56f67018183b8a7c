"""After a hard end of the router: what it left running is taken over, or ended."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from boxes import SCRIPTS, SLOT, Box, fake, is_alive

from enginerouter.engines.adoption import LaunchRecord, RecordedEnding, is_same_process, parse_record
from enginerouter.engines.left_running import end_launches_of_removed_engines
from enginerouter.engines.ports import free_port
from enginerouter.engines.proctree import ProcessInfo, ProcessKey, boot_id, snapshot
from enginerouter.slots import SlotId

SRC = Path(__file__).parents[2] / "src"
LaunchedBefore = Callable[..., Awaitable[int]]


@asynccontextmanager
async def other_router(
    folder: Path, url: str, command: tuple[str, ...]
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A router in another process whose engine is ready: it, and the pid of its engine."""
    env = os.environ | {"PYTHONPATH": str(SRC)}
    router = await asyncio.create_subprocess_exec(
        sys.executable,
        str(SCRIPTS / "router.py"),
        str(folder),
        url,
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=env,
    )
    assert router.stdout is not None
    assert router.stdin is not None
    try:
        words = (await asyncio.wait_for(router.stdout.readline(), 20)).split()
        assert words[:1] == [b"ready"]
        yield router, int(words[1])
    finally:
        if router.returncode is None:
            router.kill()
        await router.communicate()


@pytest.fixture
async def launched_before(tmp_path: Path) -> AsyncIterator[LaunchedBefore]:
    """Launch an engine with another router and kill that hard: `await launched_before(url, command)` gives the pid."""
    async with AsyncExitStack() as routers:

        async def launch(url: str, command: tuple[str, ...]) -> int:
            router, pid = await routers.enter_async_context(other_router(tmp_path, url, command))
            router.kill()
            await router.wait()
            assert is_alive(pid)
            return pid

        yield launch


async def test_an_engine_of_a_killed_router_is_adopted_and_supervised(
    tmp_path: Path, launched_before: LaunchedBefore
) -> None:
    """B1, B2: its pid was lost, and every later swap failed for ever."""
    pid = await launched_before("-", fake())
    box = Box(tmp_path)
    engine = box.engine(*fake())
    assert await engine.adopt() == [SLOT]
    assert engine.pid(SLOT) == pid
    assert not engine.address(SLOT).endswith(":0")
    assert await engine.stopped_state(SLOT) is None
    await engine.stop(SLOT)
    assert not is_alive(pid)
    assert box.crashes.empty()
    await box.close()
    assert Box(tmp_path).state.get("launches") == {}


async def test_the_crash_of_an_adopted_engine_is_told(tmp_path: Path, launched_before: LaunchedBefore) -> None:
    pid = await launched_before("-", fake())
    box = Box(tmp_path)
    engine = box.engine(*fake())
    await engine.adopt()
    os.kill(pid, signal.SIGKILL)
    slot, error = await asyncio.wait_for(box.crashes.get(), 5)
    assert slot == SLOT
    assert "ended while it served" in error.message
    await box.close()


async def test_an_adopted_engine_is_ended_with_all_it_started(tmp_path: Path, launched_before: LaunchedBefore) -> None:
    command = fake("--session", "--children", "3")
    await launched_before("-", command)
    box = Box(tmp_path)
    engine = box.engine(*command, stop_timeout_s=0.3)
    await engine.adopt()
    await engine.stop(SLOT)
    assert box.living() == set()
    await box.close()


async def test_an_engine_whose_launch_has_changed_is_stopped_instead(
    tmp_path: Path, launched_before: LaunchedBefore
) -> None:
    pid = await launched_before("-", fake())
    box = Box(tmp_path)
    engine = box.engine(*fake("--say", "new"))
    assert await engine.adopt() == []
    assert not is_alive(pid)
    (ended,) = engine.take_ended()
    assert (ended.slot, ended.pids) == (SLOT, {pid})
    assert ended.held_bytes, "which has to come back before anything is started"
    assert engine.take_ended() == []
    assert box.state.get("launches") == {}
    await box.close()


async def test_an_engine_whose_launch_has_changed_is_stopped_in_its_own_way_and_folder(tmp_path: Path) -> None:
    first, (old, new) = Box(tmp_path), (tmp_path / "old", tmp_path / "new")
    old.mkdir()
    new.mkdir()
    engine = first.engine(
        *fake(), cwd=Path("old"), stop_cmd=("/bin/sh", "-c", "touch asked-$PORT; exit 1"), env={"PORT": "{port}"}
    )
    await engine.start(SLOT)
    pid, port = engine.pid(SLOT), engine.address(SLOT).rpartition(":")[2]
    await engine.close()
    await first.state.close()
    box = Box(tmp_path)
    assert await box.engine(*fake(), cwd=Path("new"), stop_cmd=("/bin/sh", "-c", "touch wrong")).adopt() == []
    assert not is_alive(pid or 0)
    assert [path.name for path in old.iterdir()] == [f"asked-{port}"]
    assert list(new.iterdir()) == []
    await box.close()


async def test_an_engine_that_is_not_ready_any_more_is_stopped(tmp_path: Path, launched_before: LaunchedBefore) -> None:
    pid = await launched_before("-", fake())
    os.kill(pid, signal.SIGSTOP)
    box = Box(tmp_path)
    engine = box.engine(*fake(), ready_probe_timeout_s=0.2)
    assert await engine.adopt() == []
    assert not is_alive(pid)
    await box.close()


async def test_a_launch_without_a_record_is_found_by_its_marker_and_ended(
    tmp_path: Path, launched_before: LaunchedBefore
) -> None:
    pid = await launched_before("-", fake())
    (tmp_path / "state.json").write_text("{}")
    box = Box(tmp_path)
    engine = box.engine(*fake())
    assert await engine.adopt() == []
    assert not is_alive(pid)
    assert [ended.pids for ended in engine.take_ended()] == [{pid}]
    await box.close()


async def test_a_leftover_that_holds_the_port_is_ended_by_the_start(
    tmp_path: Path, launched_before: LaunchedBefore
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    pid = await launched_before(url, fake())
    (tmp_path / "state.json").write_text("{}")
    box = Box(tmp_path)
    engine = box.engine(*fake(), base_url=url)
    await engine.check(SLOT, ())
    await engine.start(SLOT)
    assert not is_alive(pid)
    await box.close()


async def test_engines_of_another_router_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with other_router(tmp_path / "other", "-", fake()) as (router, pid):
        box = Box(tmp_path)
        assert await box.engine(*fake()).adopt() == []
        assert await end_launches_of_removed_engines(box.state, []) == []
        assert is_alive(pid)
        await box.close()
        stdout, _ = await router.communicate(b"")
        assert stdout == b"stopped\n"
        assert not is_alive(pid)


async def test_what_a_removed_engine_left_running_is_ended(tmp_path: Path, launched_before: LaunchedBefore) -> None:
    pid = await launched_before("-", fake())
    box = Box(tmp_path)
    engine = box.engine(*fake(), name="other")
    assert await engine.adopt() == []
    assert is_alive(pid)
    (ended,) = await end_launches_of_removed_engines(box.state, ["other"])
    assert ended.slot == SLOT
    assert ended.pids == {pid}
    assert ended.held_bytes
    assert not is_alive(pid)
    assert box.state.get("launches") == {}
    await box.close()


async def test_a_kept_engine_survives_the_close_and_is_adopted(tmp_path: Path) -> None:
    """`on_exit: keep`: the router goes, the engine stays."""
    first = Box(tmp_path)
    engine = first.engine(*fake())
    await engine.start(SLOT)
    pid = engine.pid(SLOT)
    assert pid is not None
    await engine.close()
    await first.state.close()
    assert is_alive(pid)
    second = Box(tmp_path)
    again = second.engine(*fake())
    assert await again.adopt() == [SLOT]
    await second.close()


async def test_a_record_of_garbage_is_dropped(box: Box) -> None:
    box.state.put("launches", {"llama": {"pid": "12"}, "other": {"pid": 1}})
    engine = box.engine(*fake())
    assert await engine.adopt() == []
    assert box.state.get("launches") == {"other": {"pid": 1}}


# --- the decisions ----------------------------------------------------------------------------------------

RECORD = LaunchRecord(
    pid=77,
    started=5,
    boot_id="b",
    digest="d",
    port=8080,
    log_offset=0,
    marker="r:llama:t",
    ending=RecordedEnding(
        stop_argv=("docker", "stop", "box"), cwd="/models", host="::1", log_path="/l.log", is_container=True
    ),
)


def process(state: str = "S", started: int = 5) -> dict[int, ProcessInfo]:
    return {77: ProcessInfo(ProcessKey(77, started), 1, 77, state, "")}


def test_a_record_is_read_back_as_it_was_written() -> None:
    assert parse_record(json.loads(json.dumps(RECORD.as_json()))) == RECORD


@pytest.mark.parametrize(
    "change",
    [
        {"pid": True},
        {"pid": -1},
        {"port": 0},
        {"port": 70000},
        {"marker": None},
        {"started": 1.5},
        {"ending": 1},
        {"ending": {}},
        {"ending": {**RECORD.as_json()["ending"], "stop_argv": [1]}},
    ],
)
def test_a_damaged_record_is_none(change: dict[str, object]) -> None:
    assert parse_record(RECORD.as_json() | change) is None
    assert parse_record([1]) is None


def test_a_record_of_a_router_that_did_not_note_how_to_end_it_is_read() -> None:
    old = {name: value for name, value in RECORD.as_json().items() if name != "ending"}
    assert parse_record(old) == dataclasses.replace(RECORD, ending=None)


def test_a_process_is_the_same_only_in_the_same_boot_with_the_same_start() -> None:
    assert is_same_process(RECORD, "b", process())
    assert not is_same_process(RECORD, "another boot", process())
    assert not is_same_process(RECORD, "b", process(started=6))
    assert not is_same_process(RECORD, "b", process(state="Z"))
    assert not is_same_process(RECORD, "b", {})


def test_the_boot_and_this_process_can_be_read() -> None:
    assert boot_id()
    assert os.getpid() in snapshot()
    assert str(SlotId("a", "b/c")) == "a/b/c"
