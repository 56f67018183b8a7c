"""systemd's commands, with scripts in their place: what is read from them, and that none of them holds anything up."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from boxes import SCRIPTS
from unit_boxes import UNIT_SLOT as SLOT
from unit_boxes import UnitBox

from enginerouter.command import Said, run
from enginerouter.engines import cgroup
from enginerouter.engines.ports import free_port
from enginerouter.engines.systemctl import (
    UnitState,
    manager_environment,
    missing_manager,
    missing_system_manager,
    parse_show,
)
from enginerouter.engines.unit_run import Judgement, allowed_restarts, end_in_words, judge
from enginerouter.errors import FreeFailed, StartFailed
from loop_watch import loop_watch

SHOWN = """\
MainPID=4711
Result=success
NRestarts=2
ExecMainCode=0
ExecMainStatus=0
ControlGroup=/user.slice/user-1000.slice/user@1000.service/app.slice/llama.service
ExecStart={ path=/usr/bin/podman ; argv[]=/usr/bin/podman run --rm x ; ignore_errors=no ; pid=4711 ; status=0/0 }
LoadState=loaded
ActiveState=active
SubState=running
CanStart=yes
CanStop=yes
Job=
ConditionResult=yes
ConditionTimestampMonotonic=12
InvocationID=cfa628c7f4fa4d9db03a0fd6c81505dd
"""
UP = UnitState("loaded", "active", "running", main_pid=7, invocation="a")
DOWN = UnitState("loaded")
FAILED = UnitState("loaded", "failed", "failed", "exit-code", exit_code=1, exit_status=3, invocation="a")
WAITING = UnitState("loaded", "activating", "auto-restart", "signal", exit_code=2, exit_status=9, invocation="a")


def but(state: UnitState, **changes: object) -> UnitState:
    return dataclasses.replace(state, **changes)  # type: ignore[arg-type]


# --- what is read


def test_what_show_prints_is_read_whatever_its_order() -> None:
    state = parse_show(SHOWN)
    assert (state.active, state.sub, state.main_pid, state.restarts) == ("active", "running", 4711, 2)
    assert state.control_group.endswith("/llama.service")
    assert state.program == "podman"
    assert state.is_condition_met
    assert state.exit is None
    assert not state.is_down


def test_a_unit_that_does_not_exist_and_garbage_are_down() -> None:
    for text in ("", "LoadState=not-found\nActiveState=inactive\nSubState=dead\nMainPID=0", "MainPID=x\nnothing"):
        assert parse_show(text).is_down
        assert parse_show(text).load == "not-found"


def test_a_condition_that_nobody_looked_at_is_no_failed_one() -> None:
    assert parse_show("ConditionResult=no\nConditionTimestampMonotonic=0").is_condition_met
    assert not parse_show("ConditionResult=no\nConditionTimestampMonotonic=5").is_condition_met


def test_a_queued_job_is_not_down_yet() -> None:
    assert not parse_show("ActiveState=inactive\nJob=81").is_down


@pytest.mark.parametrize(
    ("membership", "is_ours"),
    [
        ("0::/app.slice/llama.service\n", True),
        ("0::/app.slice/llama.service/worker\n", True),
        ("0::/app.slice/llama.service2\n", False),
        ("4:memory:/app.slice/llama.service\n0::/elsewhere\n", False),
        ("9:name=systemd:/app.slice/llama.service\n0::/\n", True),
        ("", False),
    ],
)
def test_membership_is_read_from_the_hierarchy_that_systemd_keeps(membership: str, is_ours: bool) -> None:
    assert cgroup.is_within(membership, "/app.slice/llama.service") is is_ours


def test_no_group_and_the_root_group_have_no_members() -> None:
    for group in ("", "/"):
        assert cgroup.members(group, [os.getpid()]) == set()


def test_the_variables_of_a_session_are_made_up_for_a_service() -> None:
    env = manager_environment("user", {"PATH": "/bin"}, 1000)
    assert env["XDG_RUNTIME_DIR"] == "/run/user/1000"
    assert env["DBUS_SESSION_BUS_ADDRESS"] == "unix:path=/run/user/1000/bus"
    given = {"XDG_RUNTIME_DIR": "/r", "DBUS_SESSION_BUS_ADDRESS": "unix:path=/b"}
    assert manager_environment("user", given, 1000).items() >= given.items()
    assert "XDG_RUNTIME_DIR" not in manager_environment("system", {}, 0)


def test_a_missing_manager_of_the_system_is_said_with_what_to_do(tmp_path: Path) -> None:
    assert "systemd does not run this machine" in (missing_system_manager(tmp_path) or "")
    (tmp_path / "systemd/system").mkdir(parents=True)
    assert "as from inside a container" in (missing_system_manager(tmp_path) or "")
    (tmp_path / "systemd/private").touch()
    assert missing_system_manager(tmp_path) is None


def test_a_missing_user_manager_is_said_with_what_to_do(tmp_path: Path) -> None:
    assert "enable-linger" in (missing_manager({"XDG_RUNTIME_DIR": str(tmp_path)}) or "")
    (tmp_path / "bus").touch()
    assert missing_manager({"XDG_RUNTIME_DIR": str(tmp_path)}) is None


# --- what it means


@pytest.mark.parametrize(
    ("before", "state", "seen", "means"),
    [
        (DOWN, but(DOWN, has_job=True), None, Judgement.PENDING),
        (DOWN, UP, None, Judgement.UP),
        (DOWN, but(UP, active="activating", sub="start"), None, Judgement.UP),
        (DOWN, FAILED, None, Judgement.ENDED),
        (DOWN, DOWN, UP, Judgement.ENDED),
        (DOWN, WAITING, None, Judgement.ENDED),
        (DOWN, WAITING, UP, Judgement.ENDED),
        (DOWN, but(UP, restarts=1), None, Judgement.ENDED),
        (DOWN, but(UP, invocation="b"), UP, Judgement.ENDED),
        (DOWN, but(UP, active="deactivating", sub="stop-sigterm"), UP, Judgement.ENDED),
        (DOWN, but(UP, active="reloading"), UP, Judgement.UP),
        (UP, UP, None, Judgement.UP),
        (but(UP, restarts=4), but(UP, restarts=4), None, Judgement.UP),
        (WAITING, WAITING, None, Judgement.PENDING),
        (WAITING, but(WAITING, restarts=1, has_job=True), None, Judgement.PENDING),
        (WAITING, but(UP, restarts=1), None, Judgement.UP),
        (WAITING, but(WAITING, restarts=1), UP, Judgement.ENDED),
        (WAITING, but(WAITING, restarts=2, has_job=True), None, Judgement.ENDED),
    ],
)
def test_a_unit_that_systemd_restarts_has_ended_unless_that_restart_is_what_is_waited_for(
    before: UnitState, state: UnitState, seen: UnitState | None, means: Judgement
) -> None:
    assert judge(state, allowed_restarts(before), seen) is means


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (FAILED, "exited with status 3"),
        (WAITING, "SIGKILL"),
        (but(FAILED, exit_status=203), "cannot be executed"),
        (but(FAILED, result="start-limit-hit"), "too often"),
        (but(FAILED, result="oom-kill"), "lack of memory"),
        (but(DOWN, is_condition_met=False), "conditions"),
        (but(UP, active="deactivating", started_at=1.0, inactive_at=5.0), "was stopped by somebody else"),
        (
            but(
                FAILED,
                active="inactive",
                result="success",
                exit_status=0,
                started_at=1.0,
                inactive_at=5.0,
                exited_at=4.9,
            ),
            "ended with status 0, unasked",
        ),
        (DOWN, "ended in good order, by itself or because somebody stopped it"),
        (but(UP, invocation="b"), "ended"),
    ],
)
def test_how_a_unit_ended_is_said_in_words(state: UnitState, words: str) -> None:
    assert words in end_in_words(state)


# --- that nothing is held up

MakeCommand = Callable[[str], None]


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeCommand:
    """`systemctl(script)`: what `systemctl` does; `$*` are its arguments. There is no journal."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "bus").touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def write(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    write("journalctl", "echo 'no journal here' >&2; exit 1")
    return lambda script: write("systemctl", script)


@pytest.fixture
async def units(tmp_path: Path) -> AsyncIterator[UnitBox]:
    box = UnitBox(tmp_path)
    yield box
    await box.close()


def shows(state: str) -> str:
    return f"case \"$*\" in *show*) printf '{state}';; *status*) echo lines of status;; esac"


ACTIVE = r"LoadState=loaded\nActiveState=active\nSubState=running\nCanStart=yes\nCanStop=yes\nInvocationID=a\n"
INACTIVE = r"LoadState=loaded\nActiveState=inactive\nSubState=dead\nCanStart=yes\nCanStop=yes\n"


async def test_a_command_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    script = f"sleep 60 & echo $! > {tmp_path}/pid; wait"
    before = time.monotonic()
    said = await run(["sh", "-c", script], 0.3)
    assert time.monotonic() - before < 1
    assert said.hung
    assert "did not answer within 0.3 s" in said.problem()
    pid = int((tmp_path / "pid").read_text())
    await asyncio.sleep(0.05)
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


async def test_a_command_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    task = asyncio.ensure_future(run(["sleep", "60"], 60))
    await asyncio.sleep(0.1)
    task.cancel()
    before = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - before < 0.5


async def test_a_missing_systemctl_is_said_and_adopts_nothing(
    units: UnitBox, systemctl: MakeCommand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    engine = units.engine("x.service", free_port())
    with pytest.raises(StartFailed, match="is systemd installed here"):
        await engine.check(SLOT, ())
    assert await engine.adopt() == []


async def test_without_a_user_manager_the_check_says_so(
    units: UnitBox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "nothing"))
    engine = units.engine("x.service", free_port())
    with pytest.raises(StartFailed, match=r"no systemd user manager .* enable-linger"):
        await engine.check(SLOT, ())
    assert await engine.adopt() == []


async def test_a_hanging_systemctl_is_bounded_named_and_never_blocks_the_loop(
    units: UnitBox, systemctl: MakeCommand
) -> None:
    """E6: the predecessor's whole loop stood still for as long as systemctl did."""
    systemctl("sleep 30")
    engine = units.engine("x.service", free_port(), call_timeout_s=0.15)
    before = time.monotonic()
    with loop_watch() as watch:
        with pytest.raises(StartFailed, match=r"systemctl --user .*did not answer within 0.15 s"):
            await engine.check(SLOT, ())
        with pytest.raises(StartFailed, match="did not answer"):
            await engine.start(SLOT)
        await engine.stop(SLOT)  # nothing was started: nothing to free
        with pytest.raises(FreeFailed, match="did not answer"):
            await engine.adopt()  # it may be running: nothing is started on top of it
    assert time.monotonic() - before < 4
    watch.assert_never_blocked()


async def test_a_systemctl_that_hangs_at_the_stop_is_a_failure_to_free(units: UnitBox, systemctl: MakeCommand) -> None:
    systemctl(shows(ACTIVE))
    engine = units.engine(
        "x.service", free_port(), call_timeout_s=0.15, start_timeout_s=0.2, ready_check="model:nobody"
    )
    with pytest.raises(StartFailed, match=r"within 0.2 s"):
        await engine.start(SLOT)
    systemctl("sleep 30")
    before = time.monotonic()
    with loop_watch() as watch, pytest.raises(FreeFailed, match=r"stop .*did not answer"):
        await engine.stop(SLOT)
    assert time.monotonic() - before < 2
    watch.assert_never_blocked()
    systemctl(shows(INACTIVE))
    await engine.stop(SLOT)
    assert await engine.held_bytes(SLOT) == 0


async def test_what_systemd_refuses_is_quoted(units: UnitBox, systemctl: MakeCommand) -> None:
    refuses = "case \"$*\" in *show*) printf '%s';; *) echo 'Interactive authentication required.' >&2; exit 1;; esac"
    systemctl(refuses % INACTIVE)
    engine = units.engine("x.service", free_port(), scope="system", start_timeout_s=0.2)
    with pytest.raises(StartFailed, match="Interactive authentication required"):
        await engine.start(SLOT)
    await engine.stop(SLOT)  # it never ran
    systemctl(refuses % ACTIVE)
    with pytest.raises(FreeFailed, match="Interactive authentication required"):
        await engine.adopt()  # runs, is not ready, and is not ours to stop: it is accounted for


async def test_a_unit_that_outlives_even_its_kill_is_named(
    units: UnitBox, systemctl: MakeCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enginerouter.engines.systemd_unit.KILL_TIMEOUT_S", 0.2)
    systemctl(shows(ACTIVE))
    engine = units.engine("x.service", free_port(), start_timeout_s=0.2, stop_timeout_s=0.2)
    with pytest.raises(StartFailed):
        await engine.start(SLOT)
    with pytest.raises(FreeFailed, match=r"'x.service' was killed, but systemd says active \(running\)"):
        await engine.stop(SLOT)


async def test_without_a_journal_the_error_says_so_and_quotes_the_status(
    units: UnitBox, systemctl: MakeCommand
) -> None:
    systemctl(shows(r"LoadState=loaded\nActiveState=failed\nResult=exit-code\nExecMainCode=1\nExecMainStatus=1\n"))
    engine = units.engine("x.service", free_port())
    with pytest.raises(StartFailed, match=r"'x.service' exited with status 1") as caught:
        await engine.start(SLOT)
    assert caught.value.cause is None
    assert "no journal here" in (caught.value.admin_detail or "")
    assert "lines of status" in (caught.value.admin_detail or "")
    assert await engine.log_tail(SLOT) == []


def test_what_was_said_is_one_printable_line() -> None:
    assert Said("systemctl start x", 1, error="no\n\x1b[31mway").problem() == "no \\x1b[31mway (`systemctl start x`)"


async def test_a_unit_that_answers_before_systemd_was_asked_again_is_no_stranger(
    units: UnitBox, systemctl: MakeCommand, tmp_path: Path
) -> None:
    """The first look after the start may come later than the first probe that succeeds."""
    port, pid = free_port(), tmp_path / "pid"
    launch = f"{sys.executable} -I -S {SCRIPTS / 'fake_engine.py'} --port {port} >/dev/null 2>&1 &"
    systemctl(
        f"case \"$*\" in *show*) if [ -e {pid} ]; then sleep 0.3; printf '{ACTIVE}MainPID=%s\\n' $(cat {pid});"
        f" else printf '{INACTIVE}'; fi;; *reset*) ;; *start*) {launch} echo $! > {pid};; esac"
    )
    engine = units.engine("x.service", port)
    try:
        await engine.start(SLOT)
        assert await engine.stopped_state(SLOT) is None
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)
