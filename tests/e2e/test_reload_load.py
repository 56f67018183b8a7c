"""Reload after reload, of right and wrong files, while clients never stop asking: nobody is dropped."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from reload_kit import SETTINGS, FromFile, from_file, process
from router_kit import Client, chat

ALIVE = {"start_timeout_s": 20, "stop_timeout_s": 5}
WRONG = ['{"engines": {', "engnes: {}", "port: soon", "aliases: {x: {chain: [y]}, y: {chain: [x]}}", "\x00", "- a", "@"]


class Files:
    """Right and wrong files, each a little different from the one before.

    `steady` is the same in all, `first` and `second` change now and then, and `guest` comes and goes.
    """

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self._tags = {"first": "x", "second": "x"}

    def right(self) -> dict[str, Any]:
        dice = self.dice
        for name in self._tags:
            if dice.random() < 0.1:
                self._tags[name] = dice.choice("xyz")
        engines = {name: process(tag, **ALIVE) for name, tag in self._tags.items()}
        engines["steady"] = process("steady", holds_memory=False, stop_timeout_s=dice.choice([5, 6, 7]))
        if dice.random() < 0.5:
            engines["guest"] = process("guest", holds_memory=False, **ALIVE)
        return {
            **SETTINGS,
            "engines": engines,
            "aliases": {"best": dice.choice(["steady", "first"])},
            "swap_linger_s": dice.choice([0.0, 0.01]),
            "max_queued_requests": dice.choice([100, 200]),
        }

    def wrong(self) -> str:
        dice = self.dice
        return dice.choice(WRONG) if dice.random() < 0.5 else json.dumps(self.right())[: dice.randrange(1, 300)]


class Load:
    """Clients that ask again as soon as they are answered. `pids`: which processes answered for `steady`."""

    def __init__(self, router: FromFile) -> None:
        self.router = router
        self.pids: set[str] = set()
        self.answers: Counter[str] = Counter()
        self.is_over = False

    async def asks(self, model: str) -> None:
        async with self.router.client() as client:
            while not self.is_over:
                await client.send("POST", "/v1/chat/completions", chat(model))
                answer = await client.answer(20)
                if model == "guest" and answer.status in (404, 503):
                    assert answer.error["code"] in ("model_not_found", "no_longer_configured"), answer.body
                    self.answers["guest away"] += 1
                    await asyncio.sleep(0.01)
                    continue
                assert answer.status == 200, (model, answer.body)
                self.saw(model, answer.text)

    async def streams(self, model: str, folder: Path) -> None:
        for n in itertools.count():
            if self.is_over:
                return
            end = folder / f"end-{model}-{n}"
            async with self.router.client() as client:
                await self.one_stream(client, model, end)

    async def one_stream(self, client: Client, model: str, end: Path) -> None:
        await client.send("POST", "/v1/chat/completions", chat(model, stream=True, user=str(end)))
        assert await client.head(20) == 200
        seen = await client.until(b"data: {")
        await asyncio.sleep(0.1)
        end.touch()
        rest, is_whole = await client.rest(20)
        assert is_whole
        assert rest.endswith(b"data: [DONE]\n\n")
        event = json.loads(seen.split(b"data: ")[1].split(b"\n")[0])
        self.saw(model, event["choices"][0]["delta"]["content"])
        self.answers["streams"] += 1

    def saw(self, model: str, text: str) -> None:
        pid, _, tag = text.partition(" ")
        self.answers[model] += 1
        if tag == "steady":
            self.pids.add(pid)


async def under_load(folder: Path, reloads: int, seed: int) -> Counter[str]:
    files = Files(seed)
    dice = files.dice
    async with from_file(folder, files.right()["engines"], aliases={"best": "steady"}) as router:
        load = Load(router)
        asking = [load.asks(m) for m in ("steady", "first", "second", "best", "guest")]
        work = [asyncio.create_task(w) for w in (*asking, *(load.streams(m, folder) for m in ("steady", "first")))]
        try:
            for _ in range(reloads):
                is_right = dice.random() < 0.6
                router.path.write_text(json.dumps(files.right()) if is_right else files.wrong())
                answer = await router.reload()
                assert answer.status == (200 if is_right else 422), answer.body
                load.answers["reloads" if is_right else "refusals"] += 1
                await asyncio.sleep(dice.choice([0.0, 0.0, 0.02]))
                if failed := [t for t in work if t.done()]:
                    failed[0].result()
        finally:
            load.is_over = True
            async with asyncio.timeout(30):
                await asyncio.gather(*work)
        assert len(load.pids) == 1, "a process that nothing has changed was started anew"
        return load.answers


async def test_fifty_reloads_under_load_drop_nobody(tmp_path: Path) -> None:
    answers = await under_load(tmp_path, 50, seed=1)
    for what in ("steady", "first", "second", "best", "streams", "reloads", "refusals"):
        assert answers[what] > 0, what


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
async def test_five_hundred_reloads_under_load_drop_nobody(seed: int, tmp_path: Path) -> None:
    answers = await under_load(tmp_path, 500, seed)
    for what in ("steady", "first", "second", "best", "guest", "streams", "reloads", "refusals"):
        assert answers[what] > 10, what
