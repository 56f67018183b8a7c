"""systemd as its own commands tell it: `systemctl` and `journalctl`, each call in the background and bounded.

A call never raises for what the command says: a `Said` holds its status and words, or that it did not answer in time.
What `systemctl show` prints becomes a `UnitState`; what a unit should be doing and what it does is judged elsewhere.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from enginerouter.command import Said, run

Scope = Literal["user", "system"]

CALL_TIMEOUT_S = 10.0
_JOURNAL_TIMEOUT_S = 3.0
_RUNTIME_DIR = "XDG_RUNTIME_DIR"
_BUS = "DBUS_SESSION_BUS_ADDRESS"
# What systemctl says where there is nobody to talk to.
_NO_MANAGER = re.compile("Failed to connect to|has not been booted with systemd")
# SD_MESSAGE_UNIT_STOPPING: what systemd notes when it begins a stop that it was told to do.
_STOPPING = "de5b426a63be47a7b6ac3eaac82e2f6f"
_PROPERTIES = (
    "LoadState", "ActiveState", "SubState", "Result", "MainPID", "NRestarts", "ExecMainCode", "ExecMainStatus",
    "ControlGroup", "InvocationID", "Job", "ConditionResult",
    "ConditionTimestampMonotonic", "CanStart", "CanStop", "ExecStart",
    "ExecMainStartTimestampMonotonic", "ExecMainExitTimestampMonotonic", "ActiveExitTimestampMonotonic",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class UnitState:
    """What `systemctl show` says of a unit. `restarts` counts those that systemd made by itself since our last start.

    `exit_code` as waitid has it: 1 exited, 2 killed, 3 dumped core, 0 nothing yet. `job`: something is queued for it.
    The times are seconds of the monotonic clock, 0 for never: when its main process was started and exited, and when
    the unit was last no longer active.
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
    started_at: float = 0.0
    exited_at: float = 0.0
    inactive_at: float = 0.0

    @property
    def was_stopped(self) -> bool:
        """Somebody told systemd to stop it, and it went in good order: first the unit was to end, then its process."""
        is_leaving = self.active in ("inactive", "deactivating") and self.result == "success"
        has_been_up = self.inactive_at > 0.0 and self.inactive_at >= self.started_at
        return is_leaving and has_been_up and not 0.0 < self.exited_at <= self.inactive_at

    @property
    def is_forgotten(self) -> bool:
        """It ended in good order, and systemd keeps nothing of how."""
        return self.is_down and self.result == "success" and self.exit is None

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
        started_at=number("ExecMainStartTimestampMonotonic") / 1e6,
        exited_at=number("ExecMainExitTimestampMonotonic") / 1e6,
        inactive_at=number("ActiveExitTimestampMonotonic") / 1e6,
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


def missing_system_manager(run_folder: Path = Path("/run")) -> str | None:
    """Why there is no manager of the system to talk to, with what to do. Looks at files: call it in a thread."""
    if not (run_folder / "systemd/system").is_dir():
        return f"systemd does not run this machine (no {run_folder}/systemd/system); use `scope: user` or another type"
    if any((run_folder / name).exists() for name in ("systemd/private", "dbus/system_bus_socket")):
        return None
    return (
        f"the system's systemd cannot be reached (no socket in {run_folder}/systemd or {run_folder}/dbus), as from "
        "inside a container; run the router on the host, or use `scope: user`"
    )


def journal_option(scope: Scope) -> str:
    return "--user-unit" if scope == "user" else "--unit"


def journal_command(unit: str, scope: Scope) -> str:
    """What somebody types to read what a unit prints."""
    return f"journalctl {journal_option(scope)}={unit}"


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
        return await run(argv, self._timeout_s, env=self.environment(), shown=f"sudo -n systemctl start {self.unit}")

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
        option = journal_option(self.scope)
        argv = ["journalctl", f"{option}={self.unit}", f"--lines={lines}", "--no-pager", "--output=cat", "--quiet"]
        if since is not None:
            argv.append(f"--since=@{since:.6f}")
        told = await run(argv, min(self._timeout_s, _JOURNAL_TIMEOUT_S), env=self.environment())
        printed = tuple(told.out.splitlines()[-lines:]) if told.is_ok else ()
        if printed:
            return Journal(f"`journalctl {option}={self.unit}`", printed)
        why = "the journal has nothing of it" if told.is_ok else told.problem()
        status = await self._systemctl("status", "--no-pager", "--full", "--lines=20", "--", self.unit)
        return Journal(f"`systemctl status {self.unit}` ({why})", (), tuple(status.out.splitlines()))

    async def was_told_to_stop(self, since: float) -> bool:
        """Whether the journal has it that somebody told systemd to stop or restart it, since that wall-clock time.

        systemd itself may have forgotten: of a unit that ended in good order it keeps nothing.
        """
        option = journal_option(self.scope)
        words = [f"{option}={self.unit}", f"--since=@{since:.6f}", f"MESSAGE_ID={_STOPPING}", "--lines=1", "--quiet"]
        told = await run(["journalctl", *words, "--output=cat"], _JOURNAL_TIMEOUT_S, env=self.environment())
        return told.is_ok and bool(told.out.strip())

    async def _systemctl(self, *words: str) -> Said:
        scope = ["--user"] if self.scope == "user" else []
        argv = ["systemctl", *scope, "--no-ask-password", *words]
        # As somebody would type it who wants to see the same.
        shown = " ".join(["systemctl", *scope, words[0], self.unit])
        said = await run(argv, self._timeout_s, env=self.environment(), shown=shown)
        if said.hung:
            return dataclasses.replace(said, hint="look at systemd itself")
        if self.scope == "system" and _NO_MANAGER.search(said.error):
            why = await asyncio.to_thread(missing_system_manager)
            return dataclasses.replace(said, error=why or said.error)
        return dataclasses.replace(said, hint="is systemd installed here?")
