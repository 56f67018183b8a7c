"""install.sh from a fresh checkout to nothing left, under a real `systemd --user`; and from a wheel, through a pipe.

Needs a package index. Every folder has a space in its name, and nobody is there to answer questions.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from real_kit import is_gone, send, until

from enginerouter.service.unit import NAME
from llama import free_port, model_file, running_llama_server
from user_manager import UserManager

pytestmark = pytest.mark.real
REPOSITORY = Path(__file__).resolve().parents[2]
NOT_OF_A_CHECKOUT = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache", "*.egg-info", "build", "shared")


class Machine:
    """A user's home and a checkout; `install` is the script, `run` one of the installed commands."""

    def __init__(self, folder: Path) -> None:
        self.home, self.checkout = folder / "ho me", folder / "my check out"
        self.home.mkdir()
        shutil.copytree(REPOSITORY, self.checkout, ignore=NOT_OF_A_CHECKOUT, symlinks=True)
        self.venv, self.bin = self.home / "a venv", self.home / "b in"
        self.config = self.home / "con fig/config.yaml"
        self.port = free_port()
        stubs = folder / "stubs"
        stubs.mkdir()
        self.lingering = folder / "lingering"
        # Lingering is a setting of the machine, which is not ours.
        (stubs / "loginctl").write_text(f'#!/bin/sh\n[ "$1" != enable-linger ] || echo "$2" >>"{self.lingering}"\n')
        (stubs / "loginctl").chmod(0o755)
        self._stubs = stubs

    @property
    def env(self) -> dict[str, str]:
        """Ours of this moment – a test's user manager is in it – with the folders of this user."""
        dropped = ("PYTHONPATH", "ENGINEROUTER_VENV", "VIRTUAL_ENV")
        return {k: v for k, v in os.environ.items() if k not in dropped} | {
            "HOME": str(self.home),
            "PATH": f"{self._stubs}:{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "ENGINEROUTER_VENV": str(self.venv),
            "ENGINEROUTER_BIN": str(self.bin),
            "ENGINEROUTER_CONFIG": str(self.config),
        }

    def install(self, *options: str, piped: bool = False, **variables: str) -> str:
        """What it said. Through a pipe it is read from standard input, in a folder that holds nothing."""
        script = self.checkout / "install.sh"
        ended = subprocess.run(
            ["bash", "-s", "--", *options] if piped else [script, *options],
            input=script.read_text() if piped else "",
            cwd=self.home,
            env=self.env | variables,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout + ended.stderr

    def run(self, name: str, *words: str) -> str:
        command = [self.bin / name, *words]
        ended = subprocess.run(
            command, cwd=self.home, env=self.env, capture_output=True, text=True, timeout=60, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def configure_two_engines(self) -> None:
        python = str(self.venv / "bin/python")

        def demo(name: str) -> dict[str, object]:
            module = [python, "-m", "enginerouter.demo.engine", "--port", "{port}", "--name", name]
            return {"type": "generic_process", "start_cmd": [*module, "--memory-mib", "16", "--load-s", "0.1"]}

        engines = {name: demo(name) for name in ("red", "blue")}
        self.config.write_text(json.dumps({"port": self.port, "memory_source": "meminfo", "engines": engines}))

    def ask(self, model: str) -> int:
        body = {"model": model, "max_tokens": 3, "messages": [{"role": "user", "content": "hello"}]}
        return send(f"http://127.0.0.1:{self.port}/v1/chat/completions", body).status


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    shutil.rmtree(machine.venv, ignore_errors=True)


def test_from_a_checkout_to_a_service_that_swaps_and_away_again(machine: Machine, manager: UserManager) -> None:
    # Without a service first, as somebody does who wants to see the configuration.
    said = machine.install("--yes", "--no-service")
    assert f"start it with: {machine.bin}/enginerouter --config {machine.config}" in said
    machine.run("enginerouter", "check", "--config", str(machine.config))
    assert machine.config.stat().st_mode & 0o077 == 0, "keys may be in it"

    machine.configure_two_engines()
    mine = machine.config.read_text()
    assert "the service runs" in machine.install("--yes")
    assert manager.show(NAME, "ActiveState") == "active"
    assert manager.show(NAME, "UnitFileState") == "enabled"
    assert machine.lingering.read_text().split(), "it survives a logout"
    assert (machine.ask("red"), machine.ask("blue")) == (200, 200)
    status = machine.run("routerctl", "--config", str(machine.config), "status")
    assert any("blue" in line and "ready" in line for line in status.splitlines()), status
    assert any("red" in line and "cold" in line for line in status.splitlines()), status

    first = manager.pid(NAME)
    machine.install()
    assert manager.pid(NAME) not in (0, first), "the new version runs"
    assert machine.config.read_text() == mine
    assert machine.ask("red") == 200

    processes = [psutil.Process(manager.pid(NAME)), *psutil.Process(manager.pid(NAME)).children(recursive=True)]
    said = machine.install("--uninstall")
    assert f"stay in '{machine.config.parent}'" in said
    until(lambda: all(map(is_gone, processes)), "router and engine are gone")
    assert manager.show(NAME, "LoadState") == "not-found"
    assert not machine.venv.exists()
    assert list(machine.bin.iterdir()) == []
    assert machine.config.read_text() == mine
    machine.install("--uninstall")  # nothing is left to remove, which is no error


def test_the_engines_that_run_are_found_and_then_served_by_the_service(machine: Machine, manager: UserManager) -> None:
    """As the README says it, with real llama-servers: install.sh asks `init`, which reads what runs."""
    with running_llama_server(model_file("red")) as (_, red), running_llama_server(model_file("blue")) as (_, blue):
        machine.install("--no-service")
        for process in (red, blue):
            process.terminate()
            process.wait(20)
    written = machine.config.read_text()
    machine.config.write_text(re.sub(r"^port: \d+.*$", "", written, flags=re.MULTILINE) + f"\nport: {machine.port}\n")
    machine.install()
    assert (machine.ask("red"), machine.ask("blue")) == (200, 200)
    config = ("--config", str(machine.config))
    assert "red" in machine.run("routerctl", *config, "models")
    assert "ready" in machine.run("routerctl", *config, "status")
    assert "red" in machine.run("routerctl", *config, "logs")
    machine.install("--uninstall")
    assert manager.show(NAME, "LoadState") == "not-found"


def test_from_a_wheel_through_a_pipe(machine: Machine, tmp_path: Path) -> None:
    """What a package has to bring: the page, the presets, the example, the demo."""
    dist = tmp_path / "di st"
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", dist, machine.checkout]
    subprocess.run(pip, check=True, timeout=300)
    (wheel,) = dist.glob("*.whl")
    shutil.rmtree(machine.checkout / "src")
    machine.install("--yes", "--no-service", piped=True, ENGINEROUTER_SOURCE=str(wheel))
    assert "llamacpp" in machine.run("enginerouter", "init", "--list-presets")
    machine.run("enginerouter", "init", "--example", "--config", str(machine.home / "example.yaml"))
    machine.run("enginerouter", "check", "--config", str(machine.home / "example.yaml"))
    assert str(machine.venv) in machine.run("enginerouter", "unit", "--config", str(machine.config))
    said = machine.run(
        "enginerouter", "demo", "--once", "--port", str(machine.port), "--memory-mib", "16", "--load-s", "0"
    )
    assert "settle verdict" in said
    machine.install("--uninstall", piped=True)
    assert not machine.venv.exists()
