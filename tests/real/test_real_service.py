"""The router as a service of a real `systemd --user`: readiness, reload, watchdog, stop, an upgrade under traffic."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from real_kit import demo_engine, is_gone, send, until

import enginerouter
from enginerouter.service.unit import NAME, SOCKET_NAME, Service, service_text, socket_text
from llama import free_port
from user_manager import UserManager

pytestmark = pytest.mark.real
SOURCE = Path(enginerouter.__file__).parents[1]
HARDENING = Path(__file__).resolve().parents[2] / "deploy/systemd/hardening.conf"
# A router whose coordinator ends, while all else goes on, when it is told to.
STUCK = """
import asyncio, signal, sys
from enginerouter.swap.coordinator import Coordinator
start = Coordinator.start
async def start_then_listen(self, *given):
    await start(self, *given)
    def stick():
        for task in asyncio.all_tasks():
            if task.get_name() == "look after leases":
                task.cancel()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, stick)
Coordinator.start = start_then_listen
from enginerouter.cli.main import main
sys.exit(main())
"""


class RouterService:
    """The unit as the installer writes it, in a folder with a space; `command` runs it with the source under test."""

    def __init__(self, manager: UserManager, folder: Path) -> None:
        self.manager = manager
        self.folder = folder / "my router"
        self.folder.mkdir()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = self.folder / "config.yaml"
        self.command = self.folder / "enginerouter"
        self.starts("-m enginerouter")
        (self.folder / "env").write_text(f"PYTHONPATH={SOURCE}\n")

    def starts(self, python: str) -> None:
        self.command.write_text(f'#!/bin/sh\nexec "{sys.executable}" {python} "$@"\n')
        self.command.chmod(0o755)

    def configure(self, **settings: Any) -> None:
        engines = {
            n: {"type": "generic_process", "start_cmd": [*demo_engine(n, load_s=0.05), "--tokens-per-s", "2"]}
            for n in ("a", "b")
        }
        base = {"port": self.port, "memory_source": "meminfo", "engines": engines, "shutdown_timeout_s": 2}
        self.config.write_text(json.dumps(base | settings))

    def install(
        self, *, keeps_engines: bool = False, with_socket: bool = False, edit: tuple[str, str] = ("", "")
    ) -> None:
        service = Service(self.command, self.config, stop_s=20, keeps_engines=keeps_engines, path=os.environ["PATH"])
        text = service_text(service)
        assert edit[0] in text
        self.manager.write(NAME, text.replace(*edit) if edit[0] else text)
        if with_socket:
            self.manager.write(SOCKET_NAME, socket_text("127.0.0.1", self.port))

    def systemctl(self, *words: str) -> None:
        ended = self.manager.systemctl(*words)
        assert ended.returncode == 0, ended.stderr + self.manager.systemctl("status", "--lines=40", NAME).stdout

    @property
    def pid(self) -> int:
        return self.manager.pid(NAME)

    def show(self, name: str) -> str:
        return self.manager.show(NAME, name)

    def ask(self, model: str) -> None:
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=30) as client:
            client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}], max_tokens=3)

    def engine(self) -> psutil.Process:
        return next(p for p in psutil.Process(self.pid).children() if "enginerouter.demo.engine" in p.cmdline())


@pytest.fixture
def service(manager: UserManager, tmp_path: Path) -> Iterator[RouterService]:
    yield RouterService(manager, tmp_path)
    manager.systemctl("stop", SOCKET_NAME)


def test_start_returns_when_the_port_answers_and_a_stop_leaves_nothing(service: RouterService) -> None:
    service.configure()
    service.install()
    service.systemctl("start", NAME)
    assert send(f"{service.url}/health").status == 200, "no wait: the unit said that it is ready"
    assert service.show("StatusText") == f"listening on {service.url}"
    service.ask("a")
    router, engine = psutil.Process(service.pid), service.engine()
    service.systemctl("stop", NAME)
    assert is_gone(router)
    assert is_gone(engine)
    assert service.show("Result") == "success"


def test_systemctl_reload_returns_when_the_new_configuration_counts(service: RouterService) -> None:
    service.configure()
    service.install()
    service.systemctl("start", NAME)
    service.ask("a")
    router, engine = service.pid, service.engine()
    service.configure(aliases={"other": "a"})
    service.systemctl("reload", NAME)
    until_reloaded(service)
    service.ask("other")
    service.config.write_text("engines: {a: {type: generic")
    # A unit has no word for it: what is wrong is in the journal, in /status, and in `routerctl reload`.
    service.systemctl("reload", NAME)
    until(lambda: "problems" in last_reload(service) and last_reload(service)["problems"], "it is refused")
    service.ask("other")
    # systemd reads what it is told when it comes to it.
    until(lambda: service.show("StatusText") == f"listening on {service.url}", "systemd knows that it is over")
    assert service.show("ActiveState") == "active"
    assert (service.pid, service.engine().pid) == (router, engine.pid)


def last_reload(service: RouterService) -> dict[str, Any]:
    with urllib.request.urlopen(f"{service.url}/status", timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)["reload"] or {}
    return found


def until_reloaded(service: RouterService) -> None:
    """At once with `Type=notify-reload`; an older systemd only sends the signal."""
    if service.show("Type") == "notify-reload":
        assert last_reload(service)["reloaded"]
    until(lambda: last_reload(service).get("reloaded"), "it is reloaded")


def test_with_the_hardening_drop_in_it_starts_and_swaps(service: RouterService) -> None:
    service.configure()
    service.install()
    service.manager.drop_in(NAME, HARDENING)
    service.systemctl("start", NAME)
    service.ask("a")
    service.ask("b")
    assert "NoNewPrivs:\t1" in Path(f"/proc/{service.engine().pid}/status").read_text(), "it holds for engines"
    service.systemctl("stop", NAME)
    assert service.show("Result") == "success"


def test_a_stop_with_an_open_stream_ends_inside_the_units_time(service: RouterService) -> None:
    service.configure()
    service.install()
    service.systemctl("start", NAME)
    body = {"model": "a", "stream": True, "max_tokens": 100000, "messages": [{"role": "user", "content": "hi"}]}
    request = urllib.request.Request(
        f"{service.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert b"data:" in answer.readline()
        stopping = threading.Thread(target=service.systemctl, args=("stop", NAME))
        stopping.start()
        rest = answer.read()
        stopping.join()
    assert b"the router is shutting down" in rest, "the stream is cut with a word"
    assert service.show("Result") == "success", "not killed by a time-out"


def test_a_crash_of_the_router_is_started_again_and_its_engine_ended_or_taken_over(service: RouterService) -> None:
    service.configure()
    service.install(edit=("RestartSec=2", "RestartSec=0.2"))
    service.systemctl("start", NAME)
    service.ask("a")
    first, engine = service.pid, service.engine()
    os.kill(first, 9)
    until(lambda: service.pid not in (0, first) and service.show("ActiveState") == "active", "it is started again")
    assert is_gone(engine), "KillMode=mixed: the end of the router is the end of its group"
    service.ask("a")


def test_a_stuck_coordinator_is_killed_by_the_watchdog_and_the_router_serves_again(service: RouterService) -> None:
    service.configure()
    script = service.folder / "stuck.py"
    script.write_text(STUCK)
    service.starts(f'"{script}"')
    service.install(edit=("WatchdogSec=30", "WatchdogSec=2\nRestartSec=0.2"))
    service.systemctl("start", NAME)
    first = service.pid
    service.ask("a")
    os.kill(first, 10)
    until(lambda: send(f"{service.url}/health").status == 503, "health says so", timeout_s=30)
    until(lambda: service.pid not in (0, first), "the watchdog ends it", timeout_s=30)
    until(lambda: service.show("ActiveState") == "active", "it is started again")
    assert service.show("NRestarts") == "1"
    service.ask("a")


def test_a_config_error_ends_in_failed_with_its_reason_in_the_journal(service: RouterService) -> None:
    service.configure(swap_memory_settle_timout_s=3)
    service.install(edit=("StartLimitBurst=5", "StartLimitBurst=1"))
    assert service.manager.systemctl("start", NAME).returncode != 0
    until(lambda: service.show("ActiveState") == "failed", "it gives up")
    journal = ["journalctl", f"--user-unit={NAME}", "--no-pager", "--output=cat"]
    said = subprocess.run(journal, capture_output=True, text=True, timeout=20, check=True).stdout
    assert "did you mean 'swap_memory_settle_timeout_s'" in said


def test_with_a_socket_unit_and_on_exit_keep_an_upgrade_refuses_nobody_and_loads_nothing_again(
    service: RouterService,
) -> None:
    service.configure(on_exit="keep")
    service.install(keeps_engines=True, with_socket=True)
    service.systemctl("start", SOCKET_NAME)
    service.ask("a")
    first, engine = service.pid, service.engine()
    refused: list[str] = []
    served: list[int] = []
    done = threading.Event()

    def knock() -> None:
        while not done.is_set():
            try:
                with socket.create_connection(("127.0.0.1", service.port), timeout=20) as sock:
                    sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    if sock.recv(1000).startswith(b"HTTP/1.1 200"):
                        served.append(1)
            except ConnectionRefusedError as error:
                refused.append(str(error))
            except OSError:
                pass  # cut at the end of the first router, as any answer of that moment may be
            time.sleep(0.01)

    with knocking(knock, done):
        service.systemctl("restart", NAME)
    assert refused == []
    assert served
    assert service.pid != first
    assert engine.is_running()
    service.ask("a")
    assert not is_gone(engine), "taken over, not loaded again"
    service.configure(on_exit="stop")
    service.systemctl("restart", NAME)
    service.systemctl("stop", SOCKET_NAME, NAME)


@contextlib.contextmanager
def knocking(knock: Callable[[], None], done: threading.Event) -> Iterator[None]:
    thread = threading.Thread(target=knock)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
