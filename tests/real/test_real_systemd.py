"""A whole router before a unit of a real `systemd --user` and a process of its own. Needs no llama-server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from real_kit import RealRouter, Start, demo_engine, is_gone, kill_hard, send, until

import enginerouter
from llama import free_port
from user_manager import UserManager

pytestmark = pytest.mark.real
SOURCE = Path(enginerouter.__file__).parents[1]


class Unit:
    """A demo engine as a unit that always restarts; `settings` is its engine's configuration."""

    def __init__(self, manager: UserManager, name: str, *, memory_mib: int = 64, restart: str = "always") -> None:
        port = free_port()
        command = [sys.executable, "-m", "enginerouter.demo.engine", "--port", str(port), "--name", name]
        command += ["--memory-mib", str(memory_mib), "--load-s", "0.2"]
        self._manager = manager
        settings = {"Restart": restart, "RestartSec": "0.3", "Environment": f"PYTHONPATH={SOURCE}"}
        self.name = manager.unit(name, *command, **settings)
        self.settings: dict[str, Any] = {
            "type": "systemd_unit",
            "unit": self.name,
            "base_url": f"http://127.0.0.1:{port}",
            "ready_path": "/health",
        }

    @property
    def state(self) -> str:
        return self._manager.show(self.name, "ActiveState")

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self._manager.pid(self.name))


@pytest.fixture
def unit(manager: UserManager) -> Unit:
    return Unit(manager, "heavy")


def server(unit: Unit) -> dict[str, Any]:
    """The unit as a server that is always on, with no load paths: what it holds it keeps."""
    base_url = unit.settings["base_url"]
    keys = {"systemd_unit": unit.name, "systemd_scope": "user", "served_models": ["heavy"], "holds_memory": False}
    return {"type": "api_swap", "base_url": base_url, "health_path": "/health", **keys}


def engines(unit: Unit) -> dict[str, Any]:
    return {"heavy": unit.settings, "light": {"type": "generic_process", "start_cmd": demo_engine("light")}}


def test_a_unit_and_a_process_swap_and_never_live_together(unit: Unit, start: Start) -> None:
    router = start(engines(unit))
    for _ in range(2):
        assert router.ask("heavy")
        assert unit.state == "active"
        heavy = unit.process
        assert router.ask("light")
        assert is_gone(heavy)
        assert unit.state == "inactive"
        light = router.engine("light")
        assert router.ask("heavy")
        assert is_gone(light)
    settle = router.settles()[0]
    assert settle.slot == "heavy"
    assert settle.held > 0.06
    router.stop()
    assert unit.state == "inactive", "the router stops what it started"


def test_where_a_unit_prints_to_is_told_where_its_log_is_asked_for(unit: Unit, start: Start) -> None:
    router = start(engines(unit))
    answer = send(f"{router.url}/logs?engine=heavy")
    assert answer.status == 404
    assert f"in the journal: journalctl --user-unit={unit.name}" in answer.error["message"]


def test_a_killed_unit_is_crashed_then_cold_and_the_next_request_brings_it_back_once(unit: Unit, start: Start) -> None:
    router = start(engines(unit))
    router.ask("heavy")
    first = unit.process
    kill_hard(first)
    until(lambda: router.phase("heavy") == "cold", "its end is noticed, its memory waited for", timeout_s=40)
    router.wait_log("SIGKILL")
    assert unit.state in ("inactive", "failed"), "what the router calls cold holds nothing, also not by a restart"
    assert router.ask("heavy")
    second = unit.process
    assert second != first
    assert router.phase("heavy") == "ready"
    assert router.ask("light")
    assert is_gone(second)


def test_after_a_hard_end_of_the_router_the_unit_is_adopted_and_not_started_twice(unit: Unit, start: Start) -> None:
    router = start(engines(unit))
    router.ask("heavy")
    heavy = unit.process
    router.kill()
    assert not is_gone(heavy)
    router.start()
    until(lambda: router.phase("heavy") == "ready", "it is adopted")
    assert router.ask("heavy")
    assert unit.process == heavy, "the same process, nothing loaded again"
    assert router.ask("light")
    assert is_gone(heavy)


def test_a_unit_that_somebody_starts_is_stopped_before_the_next_start_and_for_a_hold(
    manager: UserManager, unit: Unit, start: Start
) -> None:
    router = start(engines(unit))
    for _ in range(2):
        assert unit.state == "inactive"
        manager.systemctl("start", unit.name)
        heavy = unit.process
        assert router.ask("light")
        assert is_gone(heavy)
        end_light(router)
    manager.systemctl("start", unit.name)
    assert router.post("/admin/hold", {"owner": "comfy"}).status == 200
    assert unit.state == "inactive"
    assert router.post("/admin/release", {}).status == 200


def test_a_unit_that_somebody_starts_serves_when_it_is_asked_for(
    manager: UserManager, unit: Unit, start: Start
) -> None:
    router = start(engines(unit))
    manager.systemctl("start", unit.name)
    heavy = unit.process
    assert router.ask("heavy")
    assert unit.process == heavy


def test_a_unit_left_running_is_adopted_again_after_on_exit_keep(unit: Unit, start: Start) -> None:
    router = start(engines(unit), on_exit="keep")
    router.ask("heavy")
    heavy = unit.process
    router.stop()
    assert not is_gone(heavy)
    router.start()
    until(lambda: router.phase("heavy") == "ready", "it is adopted")
    assert router.ask("light")
    assert is_gone(heavy)
    end_light(router)


def end_light(router: RealRouter) -> None:
    assert router.post("/admin/unload", {}).status == 200
    until(lambda: router.phase("light") == "cold", "nothing is left for `keep`")


def test_a_unit_that_fails_answers_with_its_cause_and_the_others_still_serve(
    manager: UserManager, unit: Unit, start: Start
) -> None:
    broken = manager.fake("broken", free_port(), "--say", "cudaMalloc failed: out of memory", "--exit", "1")
    settings = {"type": "systemd_unit", "unit": broken, "base_url": "http://127.0.0.1:9"}
    router = start({**engines(unit), "broken": settings})
    answer = router.post("/v1/chat/completions", {"model": "broken", "messages": []})
    assert answer.status == 502
    assert "ran out of memory" in answer.error["message"]
    assert router.ask("light")


def test_the_keys_of_an_older_config_run_a_user_unit(unit: Unit, start: Start) -> None:
    old = {"type": "ds4", "base_url": unit.settings["base_url"], "systemd_user_unit": unit.name}
    router = start({"heavy": {**old, "health_path": "/health"}})
    assert router.ask("heavy")
    assert unit.state == "active"
    router.stop()
    assert unit.state == "inactive"


def test_a_server_that_is_a_unit_is_brought_up_by_need_after_a_kill_too_and_never_stopped(
    manager: UserManager, start: Start
) -> None:
    unit = Unit(manager, "heavy", restart="no")
    router = start({**engines(unit), "heavy": server(unit)}, swap_memory_settle_timeout_s=1)
    assert unit.state == "inactive", "nobody needs it yet"
    assert router.ask("heavy")
    first = unit.process
    assert router.ask("light")
    assert unit.process == first, "it is always on"
    kill_hard(first)
    until(lambda: router.phase("heavy/heavy") == "cold", "its end is noticed", timeout_s=10)
    router.wait_log("is gone while it served")
    assert router.ask("heavy")
    second = unit.process
    assert second != first
    router.stop()
    assert unit.process == second
    assert unit.state == "active"


def test_a_server_whose_unit_fails_is_told_with_its_cause(manager: UserManager, start: Start) -> None:
    port = free_port()
    broken = manager.fake("broken", port, "--say", "cudaMalloc failed: out of memory", "--exit", "1")
    keys = {"systemd_unit": broken, "systemd_scope": "user", "served_models": ["broken"]}
    router = start({"broken": {"type": "api_swap", "base_url": f"http://127.0.0.1:{port}", **keys}})
    answer = router.post("/v1/chat/completions", {"model": "broken", "messages": []})
    assert answer.status == 502
    assert "ran out of memory" in answer.error["message"]
