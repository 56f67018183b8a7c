"""`enginerouter demo`: a real router in front of two built-in engines, and one guided swap between them.

The engines are processes of their own that hold real memory, take seconds to load and stream tokens. Nothing here is
special to the demo but the printing: the same router, the same configuration model, the same swap.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from enginerouter.config.load import load_text
from enginerouter.config.model import Config
from enginerouter.slots import SlotId
from enginerouter.swap.memory import host_source
from enginerouter.swap.phases import Phase
from enginerouter.tasks import TaskGroup
from enginerouter.web.app import Router
from enginerouter.web.serve import finished, signals, stop_router

GIB = 1024**3
ENGINES = ("red", "blue")
SHOW_MEMORY_EVERY_S = 0.5
WORDS = {
    Phase.STARTING: "starting {slot}: its model is loading",
    Phase.READY: "{slot} is ready",
    Phase.DRAINING: "draining {slot}: running answers may end, new requests wait",
    Phase.FREEING: "freeing {slot}: stopping its processes",
    Phase.SETTLING: "settling: waiting until the memory of {slot} is really back",
    Phase.COLD: "{slot} is gone and its memory is back",
    Phase.CRASHED: "{slot} died by itself; the next request starts it again",
    Phase.STUCK: "{slot} would not go",
}


def demo(*, port: int, memory_mib: int, load_s: float, ends_after_tour: bool) -> int:
    """Run the demo until Ctrl-C; gives the exit status."""
    with tempfile.TemporaryDirectory(prefix="enginerouter-demo-") as folder:
        config = demo_config(Path(folder), port=free_port(port), memory_mib=memory_mib, load_s=load_s)
        return asyncio.run(_run(config, ends_after_tour=ends_after_tour))


def free_port(wanted: int) -> int:
    """The port, or any free one if it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            print(f"port {wanted} is taken; using another one")
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def demo_config(folder: Path, *, port: int, memory_mib: int, load_s: float) -> Config:
    """The configuration of the demo, through the same loader as any other."""
    engines = {
        name: {
            "type": "generic_process",
            "start_cmd": [
                *(sys.executable, "-m", "enginerouter.demo.engine", "--port", "{port}", "--name", name),
                *("--memory-mib", str(memory_mib), "--load-s", str(load_s)),
            ],
        }
        for name in ENGINES
    }
    # The engines hold the host's memory, also where there is a card. JSON is YAML.
    settings = {"log_file": None, "swap_min_residency_s": 0.5, "memory_source": host_source().name}
    text = json.dumps({"port": port, "engines": engines, **settings})
    return load_text(text, base_dir=folder, file="demo").config


async def _run(config: Config, *, ends_after_tour: bool) -> int:
    router = Router(config)
    tour = Tour(router)
    async with signals() as stop:
        await router.start()
        try:
            was_shown = await finished(tour.guide(), stop)
            if was_shown and not ends_after_tour:
                tour.invite()
                await stop.wait()
        finally:
            print("\nstopping the engines …", flush=True)
            status = await stop_router(router, stop)
    return status if was_shown else 130


class Tour:
    """Asks red, then blue, and says what happens meanwhile."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._url = f"http://127.0.0.1:{router.config.port}"
        self._began_at = time.monotonic()
        self._tasks = TaskGroup()
        router.telemetry.listeners.append(self._slot_moved)

    async def guide(self) -> None:
        first, second = ENGINES
        self._say(
            f"enginerouter demo: two engines, {first} and {second}, behind {self._url}\n"
            "Only one of them may be in memory at a time.\n"
        )
        self._say(f"1. A chat with {first}. Nothing is loaded yet.")
        await self._chat(first)
        self._say(f"\n2. A chat with {second}: {first} has to leave memory first. This is a swap.")
        await self._chat(second)
        self._summary(SlotId(second))
        self._say(f"\n3. Another chat with {second}: it is there, so nothing has to happen.")
        await self._chat(second)

    def invite(self) -> None:
        self._say(f"\nNow try it yourself:\n{self._curl_lines()}\n\nServing until Ctrl-C.")

    async def _chat(self, model: str) -> None:
        self._began_at = time.monotonic()
        watching = self._tasks.spawn(self._show_memory(), "show memory")
        words: list[str] = []
        try:
            async for word in self._stream(model):
                if not words:
                    watching.cancel()
                words.append(word)
        finally:
            watching.cancel()
        seconds = time.monotonic() - self._began_at
        self._say(f"   {seconds:5.1f} s  {model} says: {''.join(words).strip()}")

    async def _stream(self, model: str) -> AsyncIterator[str]:
        """The text of one answer, piece by piece, as any OpenAI client would read it."""
        body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "Who are you?"}]}
        timeout = aiohttp.ClientTimeout(total=None)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(f"{self._url}/v1/chat/completions", json=body) as answer,
        ):
            if answer.status != 200:
                raise RuntimeError(f"the router answered {answer.status}: {await answer.text()}")
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    choices = json.loads(line[6:])["choices"]
                    yield (choices[0]["delta"].get("content") or "") if choices else ""

    def _slot_moved(self, slot: SlotId, phase: Phase) -> None:
        seconds = time.monotonic() - self._began_at
        self._say(f"   {seconds:5.1f} s  {WORDS[phase].format(slot=slot):<62} {self._memory()}")

    async def _show_memory(self) -> None:
        while True:
            await asyncio.sleep(SHOW_MEMORY_EVERY_S)
            self._say(f"   {time.monotonic() - self._began_at:5.1f} s  {'…':<62} {self._memory()}")

    def _memory(self) -> str:
        available = self._router.memory.available()
        return "memory cannot be read here" if available is None else f"{available / GIB:6.2f} GiB free"

    def _summary(self, slot: SlotId) -> None:
        report = self._router.telemetry.last_swap[slot]
        steps = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in report.seconds.items())
        self._say(f"   the swap took {report.total_s:.2f} s: {steps}")
        if report.settled is not None and report.settled.came_back is not None:
            back = report.settled.came_back / GIB
            self._say(f"   settle verdict: {report.settled.verdict.value}, {back:.2f} GiB came back")

    def _curl_lines(self) -> str:
        url = self._url
        return "\n".join(
            [
                f"  curl -N {url}/v1/chat/completions -H 'Content-Type: application/json' \\",
                """    -d '{"model": "red", "stream": true, "messages": [{"role": "user", "content": "hello"}]}'""",
                f"  curl {url}/v1/models",
                f"  curl {url}/status",
                f"  curl {url}/metrics",
            ]
        )

    def _say(self, text: str) -> None:
        print(text, flush=True)
