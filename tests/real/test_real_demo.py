"""`enginerouter demo --once`, as somebody who has just installed it runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import enginerouter
from llama import free_port

pytestmark = pytest.mark.real

MEMORY_MIB = 1024
LINE = re.compile(r"^ +([\d.]+) s  (.*?) +([\d.]+) GiB free$", re.MULTILINE)


def test_the_demo_shows_every_phase_with_its_seconds_and_memory_going_down_and_up(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(enginerouter.__file__).parents[1]), "DEMO_TEST": str(tmp_path)}
    command = ["demo", "--once", "--port", str(free_port()), "--memory-mib", str(MEMORY_MIB), "--load-s", "2"]
    argv = [sys.executable, "-m", "enginerouter", *command]
    ended = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    shown = ended.stdout

    second = shown[shown.index("2. A chat with blue") :]
    order = ["draining red", "freeing red", "settling", "red is gone", "starting blue", "blue is ready", "blue says"]
    at = [second.index(phase) for phase in order]
    assert at == sorted(at)
    assert re.search(
        r"the swap took [\d.]+ s: .*draining .* s, freeing .* s, settling .* s, starting [2-9]\.\d+ s", second
    )
    assert re.search(r"settle verdict: (recovered|enough), [01]\.\d+ GiB came back", second)
    assert "curl -N http://127.0.0.1:" not in shown, "it is about to stop, and invites nobody"

    free = {what: float(gib) for _, what, gib in LINE.findall(second)}
    held = MEMORY_MIB / 1024
    back = next(gib for what, gib in free.items() if what.startswith("red is gone"))
    before = next(gib for what, gib in free.items() if what.startswith("draining red"))
    after = next(gib for what, gib in free.items() if what.startswith("blue is ready"))
    assert back - before > 0.7 * held
    assert back - after > 0.7 * held

    left = [p for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get("DEMO_TEST") == str(tmp_path)]
    assert left == []
