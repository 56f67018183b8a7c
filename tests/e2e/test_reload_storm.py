"""Hundreds of reloads with files that are right or wrong, under requests and streams without a pause."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from reload_kit import FromFile, from_file, process
from router_kit import CHAT, chat

TOGETHER = [["steady", "changing", "coming"]]


def configuration(dice: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """A right one, as chance has it. `steady` is always launched the same."""
    engines = {
        "steady": process("steady", start_timeout_s=dice.choice([50, 60]), max_in_flight=dice.choice([None, 40])),
        "changing": process(dice.choice(["one", "two"]), stop_timeout_s=dice.choice([1, 2])),
    }
    if dice.random() < 0.5:
        engines["coming"] = process(dice.choice(["three", "four"]))
    chain = ["coming", "steady"] if "coming" in engines else ["steady"]
    settings = {
        "together": [[name for name in TOGETHER[0] if name in engines]],
        "aliases": {"best": {"chain": chain}, f"alias{dice.randrange(5)}": "steady"},
        "queue_timeout_s": dice.choice([60, 70]),
        "swap_keepalive_interval_s": dice.choice([5, 6]),
        "cache": dice.choice([None, {"embeddings": True}]),
        "health": {"enabled": dice.random() < 0.5},
        "state_file": dice.choice(["state.json", "other.json"]),
    }
    return engines, settings


def spoil(router: FromFile, dice: random.Random) -> None:
    """What is there becomes wrong, in one of many ways."""
    text = router.path.read_text()
    match dice.randrange(7):
        case 0:
            router.path.write_text(text[: dice.randrange(len(text) - 1)])
        case 1:
            router.path.unlink()
        case 2:
            router.path.write_text("")
        case 3:
            router.path.write_bytes(b"\xff\xfe" + text.encode())
        case 4:
            router.path.write_text(text[:-2] + ', "prot": 1}')
        case 5:
            lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
            lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
            router.path.write_text("\n".join(lines))
        case 6:
            document = json.loads(text)
            document["aliases"] = {"x": {"chain": ["y"]}, "y": {"chain": ["x"]}}
            router.path.write_text(json.dumps(document))


class Load:
    """Clients that ask without a pause until `is_over`; `seen` counts what they got."""

    def __init__(self, router: FromFile) -> None:
        self._router = router
        self.is_over = False
        self.seen: Counter[str] = Counter()
        self.steady_pids: set[str] = set()

    async def ask(self, model: str) -> None:
        async with self._router.client() as client:
            while not self.is_over:
                await client.send("POST", CHAT, chat(model))
                answer = await client.answer(20)
                assert answer.status == 200, (model, answer.status, answer.body)
                self._note(model, answer.text)

    async def stream(self, model: str) -> None:
        while not self.is_over:
            async with self._router.client() as client:
                await client.send("POST", CHAT, chat(model, stream=True, max_tokens=8))
                assert await client.head(20) == 200, (model, await client.rest())
                body, is_whole = await client.rest(20)
                assert is_whole, (model, body[-300:])
                events = body.split(b"\n\n")
                assert (len(events), events[-2]) == (10, b"data: [DONE]"), (model, body[-300:])
                self._note(f"{model} stream", json.loads(events[0][6:])["choices"][0]["delta"]["content"])

    def _note(self, what: str, said: str) -> None:
        self.seen[what] += 1
        pid, _, tag = said.partition(" ")
        if tag == "steady":
            self.steady_pids.add(pid)


async def storm(folder: Path, reloads: int, seed: int) -> None:
    dice = random.Random(seed)
    engines, settings = configuration(dice)
    async with from_file(folder, engines, **settings) as router:
        await router.said_by("steady")
        load = Load(router)
        clients = [
            asyncio.ensure_future(work)
            for work in (
                *(load.ask(model) for model in ("steady", "steady", "changing", "best")),
                *(load.stream(model) for model in ("steady", "steady", "changing", "best")),
            )
        ]
        results: Counter[int] = Counter()
        for _ in range(reloads):
            engines, settings = configuration(dice)
            router.write(engines, **settings)
            is_wrong = dice.random() < 0.4
            if is_wrong:
                spoil(router, dice)
            answer = await router.reload()
            assert answer.status == (422 if is_wrong else 200), answer.body
            results[answer.status] += 1
            await asyncio.sleep(dice.choice([0, 0, 0.01, 0.03]))
            if any(client.done() for client in clients):
                break
        load.is_over = True
        await asyncio.gather(*clients)
        assert sum(results.values()) == reloads
        assert min(results.values()) > reloads / 5
        assert len(load.steady_pids) == 1, "what has not changed was restarted"
        assert min(load.seen.values()) > 0
        assert len(load.seen) == 6, load.seen


async def test_reloads_under_load_drop_nothing(tmp_path: Path) -> None:
    await storm(tmp_path, 15, seed=1)


@pytest.mark.slow
async def test_five_hundred_reloads_under_load_drop_nothing(tmp_path: Path) -> None:
    await storm(tmp_path, 500, seed=2)
