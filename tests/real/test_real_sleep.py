"""Sleep, restart and put-back through a whole router, with processes that hold real memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from real_kit import RealRouter, Start, demo_engine, is_gone, send, until

pytestmark = pytest.mark.real

SLEEPY = Path(__file__).parents[1] / "engines" / "scripts" / "sleepy_server.py"
PLAIN = {"type": "generic_process"}


def sleepy(name: str, lie: str = "", *, memory_mib: int = 600, kept_mib: int = 150) -> dict[str, Any]:
    command = [sys.executable, str(SLEEPY), "--port", "{port}", "--name", name, "--lie", lie]
    command += ["--memory-mb", str(memory_mib), "--kept-mb", str(kept_mib)]
    return {**PLAIN, "start_cmd": command, "sleep_path": "/sleep?level=1", "wake_path": "/wake_up"}


def says(router: RealRouter, model: str) -> str:
    answer = router.post("/v1/chat/completions", {"model": model, "messages": [], "max_tokens": 1})
    assert answer.status == 200, answer.body
    return str(json.loads(answer.body)["choices"][0]["message"]["content"])


def test_a_swap_puts_the_engine_to_sleep_and_back_and_settles_on_what_it_gave_back(start: Start) -> None:
    router = start({"vllm": sleepy("vllm"), "other": {**PLAIN, "start_cmd": demo_engine("other", memory_mib=300)}})
    assert says(router, "vllm") == "vllm is awake"
    vllm = router.engine("vllm")
    awake = vllm.memory_info().rss
    says(router, "other")
    assert not is_gone(vllm)
    assert vllm.memory_info().rss < awake - 400 * 1024**2
    assert router.phase("vllm") == "cold"
    settle = router.settles()[0]
    assert settle.verdict in ("recovered", "enough"), settle
    assert settle.seconds < 5
    assert says(router, "vllm") == "vllm is awake"
    assert router.engine("vllm") == vllm
    says(router, "other")
    assert not is_gone(vllm)
    assert router.stop() == 0
    assert is_gone(vllm), "asleep, but ours: it ends with the router"


def test_an_engine_that_only_says_it_sleeps_is_stopped(start: Start) -> None:
    router = start({"vllm": sleepy("vllm", "sleep-lies"), "other": {**PLAIN, "start_cmd": demo_engine("other")}})
    says(router, "vllm")
    vllm = router.engine("vllm")
    says(router, "other")
    assert is_gone(vllm)
    assert router.settles()[0].verdict in ("recovered", "enough")


def test_a_killed_router_finds_its_sleeping_engine_asleep(start: Start) -> None:
    router = start({"vllm": sleepy("vllm"), "other": {**PLAIN, "start_cmd": demo_engine("other")}})
    says(router, "vllm")
    vllm = router.engine("vllm")
    says(router, "other")
    router.kill()
    router.start()
    router.wait_log(f"adopted process {vllm.pid}, which sleeps")
    until(lambda: router.phase("other") == "ready", "the other is adopted")
    assert router.phase("vllm") == "cold"
    assert says(router, "vllm") == "vllm is awake"
    assert router.engine("vllm") == vllm


def test_with_auto_restart_a_killed_engine_is_back_before_anybody_asks(start: Start) -> None:
    router = start({"one": {**PLAIN, "start_cmd": demo_engine("one"), "auto_restart": True}})
    router.post("/admin/swap", {"engine": "one"})
    one = router.engine("one")
    one.kill()
    router.wait_log("one cold -> starting (restart)")
    until(lambda: router.phase("one") == "ready", "it is back")
    assert router.engine("one").pid != one.pid


def test_with_rollback_the_engine_before_is_put_back(start: Start) -> None:
    broken = {**PLAIN, "start_cmd": [sys.executable, "-c", "import sys; sys.exit('{port} CUDA error')"]}
    router = start({"one": {**PLAIN, "start_cmd": demo_engine("one"), "rollback": True}, "broken": broken})
    router.post("/admin/swap", {"engine": "one"})
    answer = send(f"{router.url}/v1/chat/completions", {"model": "broken", "messages": []})
    assert answer.status == 502
    until(lambda: router.phase("one") == "ready", "it is put back")
    assert isinstance(router.engine("one"), psutil.Process)
