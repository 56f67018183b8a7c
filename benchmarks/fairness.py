"""(e) Two busy clients on each of two engines: requests served, against strict first come, first served.

Engines need 1.5 s to start and 50 ms to answer; every client asks again as soon as it has its answer; the router's
configuration is the default one. Nobody may wait longer than docs/design.md promises: the maximum wait, and the swaps
(drain included) that its clock stands still for.

python benchmarks/fairness.py [--seconds 60]
"""

import argparse
import asyncio
import json
import re
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable

import aiohttp
from rig import CHAT, HERE, router, show
from strict_fifo import StrictFifo

START_S, ANSWER_S = 1.5, 0.05
NAMES = ("red", "blue")
CLIENTS_EACH = 2
MAX_WAIT_S = 15.0  # the default of swap_max_wait_s

# Timers, two cores, and a hundred answers a second: the promise is about the policy.
SLACK_S = 0.2

Ask = Callable[[str], Awaitable[None]]


def command(name: str) -> list[str]:
    script = str(HERE / "heavy_engine.py")
    sizes = ["--memory-mib", "64", "--start-s", str(START_S), "--answer-s", str(ANSWER_S)]
    return [sys.executable, script, "{port}", "--name", name, *sizes]


async def served(ask: Ask, seconds: float) -> dict[str, list[float]]:
    """Per engine the seconds of each answer that came within the time, or was on its way when it ended."""
    took: dict[str, list[float]] = {name: [] for name in NAMES}
    over = time.perf_counter() + seconds

    async def client(name: str) -> None:
        while (began := time.perf_counter()) < over:
            await ask(name)
            took[name].append(time.perf_counter() - began)

    await asyncio.gather(*(client(name) for name in NAMES for _ in range(CLIENTS_EACH)))
    return took


async def by_fifo(seconds: float) -> tuple[dict[str, list[float]], int]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        fifo = StrictFifo({name: command(name) for name in NAMES}, session)
        running = asyncio.create_task(fifo.run())
        try:
            return await served(fifo.ask, seconds), fifo.swaps
        finally:
            running.cancel()
            await fifo.end()


async def by_router(port: int, seconds: float) -> tuple[dict[str, list[float]], float]:
    """Also the seconds of the longest swap."""
    async with aiohttp.ClientSession() as session:

        async def ask(name: str) -> None:
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            async with session.post(url, json={**CHAT, "model": name}) as answer:
                body = await answer.json()
                if answer.status != 200 or body["model"] != name:
                    raise SystemExit(f"{name} was asked, and the answer was {answer.status}: {body}")

        swaps: list[float] = []
        watching = asyncio.create_task(longest_swap(port, swaps))
        try:
            took = await served(ask, seconds)
        finally:
            watching.cancel()
        return took, max(swaps)


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.read().decode()


def swaps_of(port: int) -> int:
    pattern = r'^enginerouter_swap_total\{.*result="ok".*\} (\S+)$'
    return sum(int(float(count)) for count in re.findall(pattern, get(port, "/metrics"), re.MULTILINE))


async def longest_swap(port: int, longest: list[float]) -> None:
    """Until cancelled: adds the seconds of every swap as /status has them."""
    while True:
        status = json.loads(await asyncio.to_thread(get, port, "/status"))
        longest += [swap["total_s"] for swap in status["last_swaps"].values()]
        await asyncio.sleep(1)


def describe(who: str, took: dict[str, list[float]], swaps: int) -> int:
    count = sum(map(len, took.values()))
    each = ", ".join(f"{name} {len(seconds)} (worst wait {max(seconds):.1f} s)" for name, seconds in took.items())
    print(f"  {who}: {count} requests, {swaps} swaps; {each}")
    return count


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    engines = {name: {"type": "generic_process", "start_cmd": command(name)} for name in NAMES}
    with router({"engines": engines}) as (port, _):
        took, longest_s = asyncio.run(by_router(port, seconds))
        ours = describe("ours", took, swaps_of(port))
    theirs = describe("strict FIFO", *asyncio.run(by_fifo(seconds)))
    # Somebody who comes just as the resident begins to leave waits for that swap, for the full wait, for its own swap.
    promise_s = 2 * longest_s + MAX_WAIT_S + SLACK_S
    print(f"  promise: 2 swaps (with their drains) of {longest_s:.2f} s + {MAX_WAIT_S:g} s; {SLACK_S:g} s of slack")
    worst_s = max(max(waits) for waits in took.values()) - ANSWER_S
    ok = show("requests served, against strict FIFO", ours / theirs, 4, at_least=True)
    ok &= show("worst wait", worst_s, round(promise_s, 2), "s")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
