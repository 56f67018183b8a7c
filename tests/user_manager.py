"""A real `systemd --user` for tests, also where PID 1 is no systemd (containers, CI); root only.

It runs where it would on a desktop – in the control group of `user@0.service`, with a journal beside it – and has
units of its own only. Nothing of it is left when it ends. Where it cannot run the tests are skipped, unless
ENGINEROUTER_NEED_SYSTEMD=1 is set, as .ci/run does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BINARY = Path("/usr/lib/systemd/systemd")
JOURNALD = Path("/usr/lib/systemd/systemd-journald")
JOURNAL_SOCKET = Path("/run/systemd/journal/stdout")
BOOTED = Path("/run/systemd/system")
GROUP = "user.slice/user-0.slice/user@0.service"
# Whoever holds it has the group: a second manager in it would end with the first one. One per machine, as the group is,
# whatever TMPDIR says.
TURN = Path("/run/enginerouter-tests-user-manager.lock")
FAKE_ENGINE = Path(__file__).parent / "engines/scripts/fake_engine.py"


def need_user_manager() -> None:
    problem = ""
    if not BINARY.exists():
        problem = "no systemd here (packages systemd and dbus-user-session)"
    elif os.getuid() != 0:
        problem = "only root can run a second user manager"
    if problem and os.environ.get("ENGINEROUTER_NEED_SYSTEMD") == "1":
        pytest.fail(problem)
    if problem:
        pytest.skip(problem)


class UserManager:
    """Use as a context manager. `env` is what its clients need."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="user-manager-"))
        self.runtime = self.folder / "run"
        self._units = self.folder / "config/systemd/user"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._made_booted = False
        self.env = {
            "XDG_RUNTIME_DIR": str(self.runtime),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "DBUS_SESSION_BUS_ADDRESS": "",
        }

    def __enter__(self) -> UserManager:
        self._turn = TURN.open("w")
        fcntl.flock(self._turn, fcntl.LOCK_EX)
        self._units.mkdir(parents=True)
        self.runtime.mkdir(mode=0o700)
        # A unit that will not stop must not hold up the end of the tests.
        (self._units.parent / "user.conf").write_text("[Manager]\nDefaultTimeoutStopSec=8\n")
        if not BOOTED.exists():
            BOOTED.mkdir(parents=True)
            self._made_booted = True
        if not has_journal():
            self._launch([str(JOURNALD)])
            self._until(has_journal, "the journal")
        self._launch([str(BINARY), "--user"], groups=cgroup_folders())
        self._until(lambda: self.systemctl("is-system-running").stdout.strip() in ("running", "degraded"), "systemd")
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for folder in cgroup_folders():
            for file in folder.rglob("cgroup.procs"):
                for pid in file.read_text().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
        if self._made_booted:
            with contextlib.suppress(OSError):
                BOOTED.rmdir()
        subprocess.run(["rm", "-rf", str(self.folder)], check=True)
        self._turn.close()

    def unit(self, name: str, *command: str, **settings: str) -> str:
        """Write a service unit; its name. `settings` go to its [Service] section."""
        lines = [f"{key}={value}" for key, value in settings.items()]
        quoted = " ".join(f'"{word}"' for word in command)
        return self.write(f"{name}.service", "\n".join(["[Service]", f"ExecStart={quoted}", *lines, ""]))

    def write(self, unit: str, text: str) -> str:
        """Write a unit file as it is; its name."""
        (self._units / unit).write_text(text)
        self.systemctl("daemon-reload")
        return unit

    def drop_in(self, unit: str, file: Path) -> None:
        """Give a unit this file as a drop-in."""
        folder = self._units / f"{unit}.d"
        folder.mkdir()
        shutil.copy(file, folder)
        self.systemctl("daemon-reload")

    def fake(self, name: str, port: int, *options: str, **settings: str) -> str:
        """A unit that runs the fake engine."""
        return self.unit(name, sys.executable, "-I", "-S", str(FAKE_ENGINE), "--port", str(port), *options, **settings)

    def systemctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["systemctl", "--user", *words], env=os.environ | self.env, capture_output=True, text=True, timeout=20
        )

    def show(self, unit: str, name: str) -> str:
        return self.systemctl("show", f"--property={name}", "--value", unit).stdout.strip()

    def pid(self, unit: str) -> int:
        return int(self.show(unit, "MainPID"))

    def forget(self, unit: str) -> None:
        """The end of a test."""
        self.systemctl("kill", "--signal=SIGKILL", unit)
        self.systemctl("stop", unit)
        self.systemctl("reset-failed", unit)
        (self._units / unit).unlink(missing_ok=True)
        shutil.rmtree(self._units / f"{unit}.d", ignore_errors=True)
        self.systemctl("daemon-reload")

    def units(self) -> list[str]:
        return [path.name for path in self._units.glob("*.*") if path.is_file()]

    def _launch(self, argv: list[str], groups: tuple[Path, ...] = ()) -> None:
        def enter() -> None:
            for folder in groups:
                (folder / "cgroup.procs").write_text(str(os.getpid()))

        for folder in groups:
            folder.mkdir(parents=True, exist_ok=True)
        log = (self.folder / f"{Path(argv[0]).name}.log").open("ab")
        with log:
            self._processes.append(
                subprocess.Popen(
                    argv,
                    # As under user@.service: what the manager does with units is in the journal.
                    env={**os.environ, **self.env, "HOME": str(self.folder), "SYSTEMD_LOG_TARGET": "journal"},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=enter,
                )
            )

    @staticmethod
    def _until(is_so: object, what: str) -> None:
        deadline = time.monotonic() + 20
        while not is_so():  # type: ignore[operator]
            assert time.monotonic() < deadline, f"{what} did not come up"
            time.sleep(0.05)


def has_journal() -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(JOURNAL_SOCKET)) == 0


def cgroup_folders() -> tuple[Path, ...]:
    """The group of the user manager, in each hierarchy that systemd keeps."""
    root = Path("/sys/fs/cgroup")
    mixed = [root / name for name in ("systemd", "unified") if (root / name / "cgroup.procs").exists()]
    return tuple(folder / GROUP for folder in mixed or [root])


@contextlib.contextmanager
def shared_manager() -> Iterator[UserManager]:
    need_user_manager()
    with UserManager() as manager:
        yield manager
