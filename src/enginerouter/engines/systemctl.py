"""systemd as its own commands tell it: `systemctl` and `journalctl`, each call in the background and bounded.

A call never raises for what the command says: a `Said` holds its status and words, or that it did not answer in time.
What `systemctl show` prints becomes a `UnitState`; what a unit should be doing and what it does is judged elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from enginerouter.errors import printable

Scope = Literal["user", "system"]

CALL_TIMEOUT_S = 10.0
_JOURNAL_TIMEOUT_S = 3.0
_KILL_GRACE_S = 1.0
_RUNTIME_DIR = "XDG_RUNTIME_DIR"
_BUS = "DBUS_SESSION_BUS_ADDRESS"
_PROPERTIES = (
    "LoadState", "ActiveState", "SubState", "Result", "MainPID", "NRestarts", "ExecMainCode", "ExecMainStatus",
    "ControlGroup", "InvocationID", "Job", "ConditionResult",
    "ConditionTimestampMonotonic", "CanStart", "CanStop", "ExecStart",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Said:
    """How a command ended. `status` None: it did not answer within `seconds` and was ended, or could not be run."""

    command: str
    status: int | None
    out: str = ""
    error: str = ""
    seconds: float = 0.0

    @property
    def is_ok(self) -> bool:
        return self.status == 0

    @property
    def hung(self) -> bool:
        return self.status is None and not self.error

    def problem(self) -> str:
        """What went wrong, in words."""
        if self.hung:
            return f"`{self.command}` did not answer within {self.seconds:g} s and was ended; look at systemd itself"
        words = printable(" ".join((self.error or self.out).split()), 300)
        return f"`{self.command}` failed: {words or f'status {self.status}'}"


@dataclass(frozen=True, slots=True)
class UnitState:
    """What `systemctl show` says of a unit. `restarts` counts those that systemd made by itself since our last start.

    `exit_code` as waitid has it: 1 exited, 2 killed, 3 dumped core, 0 nothing yet. `job`: something is queued for it.
    """

    load: str = "not-found"
    active: str = "inactive"
    sub: str = "dead"
    result: str = "success"
    main_pid: int = 0
    restarts: int = 0
    exit_code: int = 0
    exit_status: int = 0
    control_group: str = ""
    invocation: str = ""
    has_job: bool = False
    is_condition_met: bool = True
    can_start: bool = True
    can_stop: bool = True
    program: str = ""

    @property
    def is_down(self) -> bool:
        return self.active in ("inactive", "failed") and not self.has_job

    @property
    def is_being_restarted(self) -> bool:
        """Died, and systemd waits to start it again (`Restart=`)."""
        return self.sub.startswith("auto-restart")

    @property
    def exit(self) -> int | None:
        """As `subprocess` has it; None while its main process runs, or where there was none."""
        if self.exit_code == 1:
            return self.exit_status
        return -self.exit_status if self.exit_code in (2, 3) else None

    def __str__(self) -> str:
        return f"{self.active} ({self.sub})"


@dataclass(frozen=True, slots=True)
class Journal:
    """What a unit printed, and where that is from.

    `status`, where the journal has nothing: what `systemctl status` says. For reading only: it quotes the command line.
    """

    source: str
    printed: tuple[str, ...]
    status: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        return self.printed or self.status


def parse_show(text: str) -> UnitState:
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def number(name: str) -> int:
        value = found.get(name, "")
        return int(value) if value.isdecimal() else 0

    return UnitState(
        load=found.get("LoadState", "not-found"),
        active=found.get("ActiveState", "inactive"),
        sub=found.get("SubState", "dead"),
        result=found.get("Result", "success"),
        main_pid=number("MainPID"),
        restarts=number("NRestarts"),
        exit_code=number("ExecMainCode"),
        exit_status=number("ExecMainStatus"),
        control_group=found.get("ControlGroup", ""),
        invocation=found.get("InvocationID", ""),
        has_job=bool(number("Job")),
        # A unit whose conditions were never looked at says "no" as well.
        is_condition_met=found.get("ConditionResult") != "no" or not number("ConditionTimestampMonotonic"),
        can_start=found.get("CanStart", "yes") != "no",
        can_stop=found.get("CanStop", "yes") != "no",
        program=_program(found.get("ExecStart", "")),
    )


def _program(exec_start: str) -> str:
    """`{ path=/usr/bin/podman ; argv[]=… }` → `podman`."""
    _, _, rest = exec_start.partition("path=")
    return rest.partition(" ;")[0].strip().rpartition("/")[2]


def manager_environment(scope: Scope, outer: Mapping[str, str], user_id: int) -> dict[str, str]:
    """What the commands need to find their manager. A service or a cron job may lack the variables of a session."""
    env = {**outer, "LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": "", "SYSTEMD_URLIFY": "0"}
    if scope == "user":
        folder = env.setdefault(_RUNTIME_DIR, f"/run/user/{user_id}")
        if not env.get(_BUS):
            env[_BUS] = f"unix:path={folder}/bus"
    return env


def missing_manager(env: Mapping[str, str]) -> str | None:
    """Why there is no user manager to talk to, with what to do. Looks at files: call it in a thread."""
    folder = Path(env[_RUNTIME_DIR])
    if (folder / "systemd/private").exists() or (folder / "bus").exists():
        return None
    return (
        f"no systemd user manager runs for this user (nothing of it in {folder}); log in, or `loginctl enable-linger`, "
        f"and set {_RUNTIME_DIR} where the router runs without a session; or use `scope: system`"
    )


class Systemctl:
    """The commands for one unit. `timeout_s` bounds each call."""

    def __init__(self, unit: str, scope: Scope, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self.unit = unit
        self.scope = scope
        self._timeout_s = timeout_s
        self._user_id = os.getuid() if hasattr(os, "getuid") else 0

    def environment(self) -> dict[str, str]:
        return manager_environment(self.scope, os.environ, self._user_id)

    async def missing_manager(self) -> str | None:
        if self.scope == "system":
            return None
        return await asyncio.to_thread(missing_manager, self.environment())

    async def show(self) -> UnitState | Said:
        """The unit's state; what was said instead of it where that cannot be had."""
        said = await self._systemctl("show", f"--property={','.join(_PROPERTIES)}", "--", self.unit)
        return parse_show(said.out) if said.is_ok else said

    async def start(self) -> Said:
        """Queue its start. Returns before it runs."""
        return await self._systemctl("start", "--no-block", "--", self.unit)

    @property
    def needs_root(self) -> bool:
        """Units of the system are root's to start, unless polkit says otherwise."""
        return self.scope == "system" and self._user_id != 0

    async def start_as_root(self) -> Said:
        """`start` through `sudo`, which asks for no password."""
        argv = ["sudo", "-n", "systemctl", "start", "--no-block", "--", self.unit]
        return await run(argv, self.environment(), self._timeout_s)

    async def stop(self) -> Said:
        """Queue its stop, after which `Restart=` does not bring it back."""
        return await self._systemctl("stop", "--no-block", "--", self.unit)

    async def reset_failed(self) -> Said:
        return await self._systemctl("reset-failed", "--", self.unit)

    async def kill(self) -> Said:
        """SIGKILL for every process of it."""
        return await self._systemctl("kill", "--signal=SIGKILL", "--", self.unit)

    async def journal(self, lines: int, since: float | None = None) -> Journal:
        """The last lines that the unit printed, since a moment of the wall clock if one is given."""
        option = "--user-unit" if self.scope == "user" else "--unit"
        argv = ["journalctl", f"{option}={self.unit}", f"--lines={lines}", "--no-pager", "--output=cat", "--quiet"]
        if since is not None:
            argv.append(f"--since=@{since:.6f}")
        told = await run(argv, self.environment(), min(self._timeout_s, _JOURNAL_TIMEOUT_S))
        printed = tuple(told.out.splitlines()[-lines:]) if told.is_ok else ()
        if printed:
            return Journal(f"`journalctl {option}={self.unit}`", printed)
        why = "the journal has nothing of it" if told.is_ok else told.problem()
        status = await self._systemctl("status", "--no-pager", "--full", "--lines=20", "--", self.unit)
        return Journal(f"`systemctl status {self.unit}` ({why})", (), tuple(status.out.splitlines()))

    async def _systemctl(self, *words: str) -> Said:
        scope = ["--user"] if self.scope == "user" else []
        return await run(["systemctl", *scope, "--no-ask-password", *words], self.environment(), self._timeout_s)


async def run(argv: Sequence[str], env: Mapping[str, str], timeout_s: float) -> Said:
    """Run a short command in a session of its own; if it takes too long, it is killed with all it started."""
    command = " ".join(argv)
    began = time.monotonic()
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(env),
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        return Said(command, None, error=f"{error}; is systemd installed here?")
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate()
    except TimeoutError:
        return Said(command, None, seconds=timeout_s)
    finally:
        if process.returncode is None:
            await _end(process)
    text, errors = out.decode(errors="replace"), err.decode(errors="replace")
    return Said(command, process.returncode, text, errors, time.monotonic() - began)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Its group first: what it started may hold our end of its output open."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_KILL_GRACE_S):
            await process.communicate()
