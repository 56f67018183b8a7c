"""Two routers behind a real HAProxy, as deploy/haproxy has it: a chain crosses boxes, and a box may die."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from real_kit import RealRouter, demo_engine, kill_hard, send, until

from llama import free_port

pytestmark = pytest.mark.real
CONFIG = Path(__file__).resolve().parents[2] / "deploy/haproxy/haproxy.cfg"


@pytest.fixture
def haproxy() -> str:
    found = shutil.which("haproxy")
    if found is None and os.environ.get("ENGINEROUTER_NEED_HAPROXY") == "1":
        pytest.fail("no haproxy here")
    if found is None:
        pytest.skip("no haproxy here (Debian: apt install haproxy)")
    return str(found)


class Boxes:
    """Two routers, each with the model `home` on an engine of its own and the other box next in the chain `best`."""

    def __init__(self, folder: Path, haproxy: str) -> None:
        ports = [free_port(), free_port()]
        self.routers = [self._box(folder / name, name, ports[i], ports[1 - i]) for i, name in enumerate("ab")]
        self.url = f"http://127.0.0.1:{(front := free_port())}"
        env = {
            "PATH": os.environ["PATH"],
            "LISTEN": f"127.0.0.1:{front}",
            "BOX_A": f"127.0.0.1:{ports[0]}",
            "BOX_B": f"127.0.0.1:{ports[1]}",
        }
        self._proxy = subprocess.Popen([haproxy, "-db", "-f", str(CONFIG)], env=env, stdout=subprocess.DEVNULL)

    @staticmethod
    def _box(folder: Path, name: str, port: int, other: int) -> RealRouter:
        folder.mkdir()
        engine = {"type": "generic_process", "start_cmd": demo_engine(f"home-of-{name}"), "max_restarts": 1}
        there = {"type": "remote", "base_url": f"http://127.0.0.1:{other}/v1"}
        settings: dict[str, Any] = {
            "port": port,
            "models": [{"id": "home", "engine": "home", "upstream_id": f"home-of-{name}"}],
            "aliases": {"best": {"chain": ["home", "there/home"]}},
        }
        router = RealRouter.of(folder, {"home": engine, "there": there}, settings)
        router.port, router.url = port, f"http://127.0.0.1:{port}"
        router.start()
        return router

    def served_by(self, model: str = "best") -> str:
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
            answer = client.chat.completions.with_raw_response.create(
                model=model, messages=[{"role": "user", "content": "hi"}], max_tokens=3
            )
            return str(answer.parse().model)

    def end(self) -> None:
        self._proxy.terminate()
        self._proxy.wait(20)
        for router in self.routers:
            router.end()


@pytest.fixture
def boxes(tmp_path: Path, haproxy: str) -> Iterator[Boxes]:
    made = Boxes(tmp_path, haproxy)
    until(lambda: _is_up(made.url), "HAProxy and both routers answer")
    yield made
    made.end()


def _is_up(url: str) -> bool:
    try:
        return send(f"{url}/health").status == 200
    except OSError:
        return False


def test_where_the_engine_of_one_box_will_not_serve_the_chain_crosses_to_the_other(boxes: Boxes) -> None:
    first, second = boxes.routers
    assert boxes.served_by() == "home-of-a"
    assert second.phase("home") == "cold", "the other box has done nothing"
    first.post("/admin/hold", {"owner": "a game"})
    assert boxes.served_by() == "home-of-b"
    assert first.metric('fallback_total{from_model="home/home",to_model="there/home",reason="held"}') == 1
    first.post("/admin/release", {})
    assert boxes.served_by() == "home-of-a"


def test_a_box_that_dies_is_replaced_by_the_other_and_taken_back_when_it_lives(boxes: Boxes) -> None:
    first, _ = boxes.routers
    assert boxes.served_by() == "home-of-a"
    first.kill()
    until(lambda: _served(boxes) == "home-of-b", "HAProxy has seen it", timeout_s=15)
    first.start()
    until(lambda: _served(boxes) == "home-of-a", "it is asked again", timeout_s=15)


def test_a_killed_engine_behind_the_proxy_is_started_again_there(boxes: Boxes) -> None:
    first, _ = boxes.routers
    assert boxes.served_by() == "home-of-a"
    kill_hard(first.engine("home-of-a"))
    assert boxes.served_by() in ("home-of-a", "home-of-b"), "nobody notices but the log"
    first.wait_log("SIGKILL")


def test_a_stream_comes_through_piece_by_piece(boxes: Boxes) -> None:
    with openai.OpenAI(base_url=f"{boxes.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        events = client.chat.completions.create(
            model="best", messages=[{"role": "user", "content": "hi"}], max_tokens=5, stream=True
        )
        assert len([e for e in events if e.choices and e.choices[0].delta.content]) == 5


def _served(boxes: Boxes) -> str:
    try:
        return boxes.served_by()
    except openai.APIError as error:
        return str(error)
