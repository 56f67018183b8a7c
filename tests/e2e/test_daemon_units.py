"""A server that is a systemd unit: brought up where nobody listens, never stopped. systemd's commands are scripts."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from engine_server import FakeEngineServer
from http_servers import LM_STUDIO, LmStudio, OllamaDaemon
from router_kit import MakeRouter, RouterUnderTest, chat

from enginerouter.config.engines import ApiSwap, Ollama
from enginerouter.engines.daemon_unit import DaemonUnit, is_here
from enginerouter.engines.ports import free_port
from enginerouter.errors import StartFailed, StartTimedOut
from enginerouter.swap.phases import Phase

DOWN = "LoadState=loaded\nActiveState=inactive\nSubState=dead\nCanStart=yes\n"
UP = "LoadState=loaded\nActiveState=active\nSubState=running\nCanStart=yes\nInvocationID=a\n"
FAILED = "LoadState=loaded\nActiveState=failed\nSubState=failed\nResult=exit-code\nExecMainCode=1\nExecMainStatus=7\n"
DENIED = "echo 'Interactive authentication required.' >&2; exit 1"


class ScriptedSystemd:
    """`systemctl`, `journalctl` and `sudo` as scripts. `show` prints `state`; `start` makes that `after_start`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        self._asked = folder / "asked"
        self._asked.touch()
        self.state(DOWN)
        self.after_start(UP)
        self.starts_by("cp after_start state")
        self._program("journalctl", "echo error: the disk is full")

    def state(self, shown: str) -> None:
        (self.folder / "state").write_text(shown)

    def after_start(self, shown: str) -> None:
        (self.folder / "after_start").write_text(shown)

    def starts_by(self, script: str, *, otherwise: str = "cat state") -> None:
        self._program("systemctl", f'case "$*" in *show*) {otherwise};; *" start "*|"start "*) {script};; esac')

    def sudo(self, script: str) -> None:
        self._program("sudo", script)

    def asked(self, word: str) -> list[str]:
        """The command lines with this word."""
        return [line for line in self._asked.read_text().splitlines() if word in line.split()]

    def _program(self, name: str, script: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f'#!/bin/sh\ncd {self.folder}\necho {name} "$*" >> asked\n{script}\n')
        path.chmod(0o755)


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedSystemd:
    folder = tmp_path / "systemd"
    folder.mkdir()
    (folder / "bus").touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.setenv("PATH", f"{folder}/bin:/usr/bin:/bin")
    return ScriptedSystemd(folder)


@pytest.fixture
async def daemon() -> AsyncIterator[OllamaDaemon]:
    """Not listening yet, at a port of its own."""
    server = OllamaDaemon()
    server.port = free_port()
    yield server
    await server.stop()


def ollama(server: OllamaDaemon, **more: Any) -> Ollama:
    return Ollama(name="ollama", base_url=server.url, served_models=("llama3",), unload_timeout_s=0.4, **more)


async def up_when_started(server: FakeEngineServer, systemd: ScriptedSystemd, times: int = 1) -> None:
    async with asyncio.timeout(5):
        while len(systemd.asked("start")) < times:
            await asyncio.sleep(0.005)
    await server.listen()


async def ask_while_it_comes_up(
    router: RouterUnderTest, model: str, server: FakeEngineServer, systemd: ScriptedSystemd, times: int = 1
) -> str:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(up_when_started(server, systemd, times))
        asking = tasks.create_task(router.ask(chat(model)))
    assert asking.result().status == 200, asking.result().body
    return asking.result().text


async def test_a_daemon_that_is_down_is_started_once_the_memory_is_free_and_outlives_the_router(
    make_router: MakeRouter, systemd: ScriptedSystemd, daemon: OllamaDaemon
) -> None:
    router = await make_router(("a",), http=[ollama(daemon)])
    await router.load("a")
    assert not systemd.asked("start"), "it is not started before somebody needs it"
    assert await ask_while_it_comes_up(router, "llama3", daemon, systemd) == "ollama serves llama3"
    assert not router.a.is_running
    assert systemd.asked("start") == ["systemctl --no-ask-password start --no-block -- ollama.service"]
    await router.load("a")
    await router.stop()
    assert not {word for word in ("stop", "restart", "kill") if systemd.asked(word)}


async def test_a_daemon_that_answers_is_left_to_itself(
    make_router: MakeRouter, systemd: ScriptedSystemd, daemon: OllamaDaemon
) -> None:
    await daemon.listen()
    router = await make_router((), http=[ollama(daemon)])
    await router.load("llama3")
    daemon.fails["GET /api/version"] = [b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"]
    await router.ask(chat("llama3"))
    assert not systemd.asked("systemctl")


async def test_one_that_dies_while_it_serves_is_started_again_by_the_next_request(
    make_router: MakeRouter, systemd: ScriptedSystemd, daemon: OllamaDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enginerouter.engines.server_watch.ASK_EVERY_S", 0.02)
    monkeypatch.setattr("enginerouter.engines.server_watch.ASK_AGAIN_AFTER_S", 0.01)
    router = await make_router((), http=[ollama(daemon)])
    await ask_while_it_comes_up(router, "llama3", daemon, systemd)
    await daemon.stop()
    systemd.state(DOWN)
    await router.until(lambda: router.phase("ollama") is Phase.COLD)
    assert len(systemd.asked("start")) == 1, "nobody asked for it"
    assert await ask_while_it_comes_up(router, "llama3", daemon, systemd, times=2) == "ollama serves llama3"


async def test_a_server_with_load_paths_is_brought_up_in_the_scope_that_is_named_then_loads(
    make_router: MakeRouter, systemd: ScriptedSystemd
) -> None:
    server = LmStudio()
    server.port = free_port()
    settings = ApiSwap(
        name="lms",
        base_url=server.url,
        served_models=("qwen",),
        systemd_unit="lms.service",
        systemd_scope="user",
        **LM_STUDIO,
    )
    router = await make_router((), http=[settings])
    try:
        assert await ask_while_it_comes_up(router, "qwen", server, systemd) == "lms serves qwen"
        assert systemd.asked("start") == ["systemctl --user --no-ask-password start --no-block -- lms.service"]
        assert len(server.called("POST /api/v1/models/load")) == 1
        await router.stop()
    finally:
        await server.stop()
    assert not systemd.asked("stop")


async def test_without_a_unit_of_that_name_nothing_is_evicted_and_the_error_names_it(
    make_router: MakeRouter, systemd: ScriptedSystemd, daemon: OllamaDaemon
) -> None:
    systemd.state("LoadState=not-found\nActiveState=inactive\n")
    router = await make_router(("a",), http=[ollama(daemon)])
    await router.load("a")
    failed = await router.ask(chat("llama3"))
    assert (failed.status, failed.error["code"]) == (502, "start_failed")
    said = failed.error["message"]
    assert "connection refused, and its unit 'ollama.service' does not exist in the system scope" in said
    assert "start it (`ollama serve`)" in said
    assert router.phase("a") is Phase.READY
    assert not systemd.asked("start")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"systemd_unit": None}, "connection refused; start it"),
        ({"systemd_scope": "user"}, "no systemd user manager runs for this user"),
    ],
)
async def test_where_no_unit_can_start_it_the_error_says_why(
    make_router: MakeRouter,
    systemd: ScriptedSystemd,
    daemon: OllamaDaemon,
    change: dict[str, Any],
    words: str,
) -> None:
    (systemd.folder / "bus").unlink()
    router = await make_router((), http=[ollama(daemon, **change)])
    failed = await router.ask(chat("llama3"))
    assert failed.status == 502
    assert words in failed.error["message"]
    assert not systemd.asked("systemctl")


async def test_a_unit_that_fails_ends_the_wait_with_its_cause(
    make_router: MakeRouter, systemd: ScriptedSystemd, daemon: OllamaDaemon
) -> None:
    systemd.after_start(FAILED)
    router = await make_router((), http=[ollama(daemon, start_timeout_s=300.0)])
    failed = await router.ask(chat("llama3"))
    assert (failed.status, failed.error["code"]) == (502, "start_failed")
    assert "its unit 'ollama.service' exited with status 7" in failed.error["message"]
    assert "the disk is full" in failed.error["detail"]


async def test_a_unit_that_runs_while_nobody_listens_is_a_time_out_that_says_both(
    make_router: MakeRouter, systemd: ScriptedSystemd, daemon: OllamaDaemon
) -> None:
    router = await make_router((), http=[ollama(daemon, start_timeout_s=0.1)])
    failed = await router.ask(chat("llama3"))
    assert (failed.status, failed.error["code"]) == (504, "start_timeout")
    assert "systemd says active (running) of its unit 'ollama.service', but" in failed.error["message"]
    assert "connection refused" in failed.error["message"]


# --- the unit alone


async def refused() -> str | None:
    return "refused"


async def test_a_start_that_only_root_may_ask_for_goes_through_sudo(
    systemd: ScriptedSystemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    systemd.starts_by(DENIED)
    systemd.sudo("echo up > up")

    async def refusal() -> str | None:
        return None if (systemd.folder / "up").exists() else "refused"

    await DaemonUnit("tabby", "tabby.service", "system").bring_up(refusal, 5.0)
    assert systemd.asked("sudo") == ["sudo -n systemctl start --no-block -- tabby.service"]


@pytest.mark.parametrize(
    ("scope", "user", "asks_sudo"), [("system", 1000, True), ("system", 0, False), ("user", 1, False)]
)
async def test_what_refuses_the_start_is_quoted_and_sudo_is_for_units_of_the_system_only(
    systemd: ScriptedSystemd, monkeypatch: pytest.MonkeyPatch, scope: Any, user: int, asks_sudo: bool
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: user)
    systemd.starts_by(DENIED)
    systemd.sudo("echo 'sudo: a password is required' >&2; exit 1")
    with pytest.raises(StartFailed, match="Interactive authentication required") as caught:
        await DaemonUnit("tabby", "tabby.service", scope).bring_up(refused, 5.0)
    assert ("a password is required" in caught.value.message) is asks_sudo
    assert bool(systemd.asked("sudo")) is asks_sudo


async def test_a_systemctl_that_hangs_is_bounded_and_named(systemd: ScriptedSystemd) -> None:
    systemd.starts_by("sleep 30", otherwise="sleep 30")
    unit = DaemonUnit("tabby", "tabby.service", "system", call_timeout_s=0.1)
    before = time.monotonic()
    assert "did not answer within 0.1 s" in (await unit.why_not() or "")
    with pytest.raises(StartFailed, match=r"did not answer within 0\.1 s"):
        await unit.bring_up(refused, 5.0)
    systemd.starts_by("sleep 30")
    with pytest.raises(StartFailed, match=r"start .*did not answer within 0\.1 s"):
        await unit.bring_up(refused, 5.0)
    assert time.monotonic() - before < 3


async def test_a_unit_that_dies_and_is_restarted_by_systemd_is_a_failed_start(systemd: ScriptedSystemd) -> None:
    systemd.after_start(
        "LoadState=loaded\nActiveState=activating\nSubState=auto-restart\nExecMainCode=2\nExecMainStatus=9\n"
    )
    with pytest.raises(StartFailed, match="SIGKILL"):
        await DaemonUnit("tabby", "tabby.service", "system").bring_up(refused, 300.0)


async def test_a_show_that_fails_meanwhile_is_no_end_of_the_wait(systemd: ScriptedSystemd) -> None:
    systemd.starts_by("cp after_start state; : > broken", otherwise="if [ -e broken ]; then exit 1; fi; cat state")
    with pytest.raises(StartTimedOut, match=r"show .*failed"):
        await DaemonUnit("tabby", "tabby.service", "system").bring_up(refused, 0.1)


@pytest.mark.parametrize(
    ("host", "is_ours"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("192.0.2.7", False), ("", False)]
)
async def test_only_a_server_of_this_machine_is_its_systemds(host: str, is_ours: bool) -> None:
    assert await is_here(host, 80) is is_ours
