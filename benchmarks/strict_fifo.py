"""The yardstick for fairness: strict first come, first served, with one engine in memory at a time.

Owns its engines as a router would: whenever the head of its queue wants the other engine, what runs may end, the
resident is stopped, and the other one is started. Requests behind the head wait, also those for the resident. It has
no HTTP side: its clients are coroutines, so nothing but the policy (and the engines) costs it time.
"""

import asyncio
import contextlib
import signal
from collections import deque

import aiohttp
from rig import CHAT, free_port


class StrictFifo:
    """`commands`: engine name -> its argv, with {port} in it."""

    def __init__(self, commands: dict[str, list[str]], session: aiohttp.ClientSession) -> None:
        self.commands = commands
        self.session = session
        self.queue: deque[tuple[str, asyncio.Future[None]]] = deque()
        self.resident: str | None = None
        self.child: asyncio.subprocess.Process | None = None
        self.port = 0
        self.running = 0
        self.changed = asyncio.Event()
        self.swaps = 0

    async def ask(self, name: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self.queue.append((name, turn))
        self.changed.set()
        await turn
        try:
            url = f"http://127.0.0.1:{self.port}/v1/chat/completions"
            async with self.session.post(url, json={**CHAT, "model": name}) as answer:
                assert (await answer.json())["model"] == name
        finally:
            self.running -= 1
            self.changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            while not self.queue:
                await self._change()
            name, turn = self.queue[0]
            if self.resident != name:
                while self.running:
                    await self._change()
                await self._swap(name)
            self.queue.popleft()
            self.running += 1
            turn.set_result(None)

    async def _change(self) -> None:
        self.changed.clear()
        await self.changed.wait()

    async def _swap(self, name: str) -> None:
        await self.end()
        self.port = free_port()
        argv = [word.replace("{port}", str(self.port)) for word in self.commands[name]]
        self.child = await asyncio.create_subprocess_exec(*argv, start_new_session=True)
        while not await self._is_up():
            await asyncio.sleep(0.01)
        self.resident = name
        self.swaps += 1

    async def _is_up(self) -> bool:
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with self.session.get(f"http://127.0.0.1:{self.port}/health") as answer:
                return answer.status == 200
        return False

    async def end(self) -> None:
        child, self.child, self.resident = self.child, None, None
        if child is not None:
            child.send_signal(signal.SIGTERM)
            await child.wait()
