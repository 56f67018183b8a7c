"""(a) A swap between two 1 GiB engines that need 0.5 s to start, against stopping and starting them by hand.

What counts is what a client sees: the seconds of the first request to the other engine, the resident idle beyond its
linger. By hand: SIGTERM, wait for the exit, start, ask /health every 10 ms, send the same request. The two take turns
in going first. A pair in which an engine itself was slower than its 0.5 s (other programs want memory, or the host of
this machine hands it out slowly) says nothing about either, and is repeated.

python benchmarks/swap.py [--pairs 16]
"""

import argparse
import contextlib
import http.client
import json
import subprocess
import sys
import time
import urllib.request

from rig import CHAT, HERE, free_port, median, router, show

MEMORY_MIB, START_S = 1024, 0.5
NAMES = ("red", "blue")
# Longer than swap_linger_s: the resident is idle, and nobody is expected back.
IDLE_S = 0.6
# Later than this beyond its 0.5 s, an engine was held up by the machine.
SLOWER_S = 0.03


def command(name: str, port: str) -> list[str]:
    script = str(HERE / "heavy_engine.py")
    sizes = ["--memory-mib", str(MEMORY_MIB), "--start-s", str(START_S)]
    return [sys.executable, script, port, "--name", name, *sizes]


def ask(port: int, model: str) -> float:
    """One chat on a fresh connection, answered by `model`; the seconds that it needed to start."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        body = json.dumps({**CHAT, "model": model})
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != 200 or json.loads(said)["model"] != model:
            raise SystemExit(f"{model} was asked, and the answer was {answer.status}: {said[:500]!r}")
        return json.loads(said)["started_s"]


class ByHand:
    """One engine at a time, as a person with two terminals has it."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None

    def swap(self, model: str) -> tuple[float, float]:
        """Seconds of the whole, and what the engine itself took of them."""
        began = time.perf_counter()
        self.end()
        port = free_port()
        self.child = subprocess.Popen(command(model, str(port)), start_new_session=True)
        while not self._is_up(port):
            time.sleep(0.01)
        started_s = ask(port, model)
        return time.perf_counter() - began, started_s

    def end(self) -> None:
        if self.child is not None:
            self.child.terminate()
            self.child.wait()

    @staticmethod
    def _is_up(port: int) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        return False


def routed(port: int, model: str) -> tuple[float, float]:
    """The same through the router."""
    began = time.perf_counter()
    started_s = ask(port, model)
    return time.perf_counter() - began, started_s


def steps(port: int, model: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/status") as answer:
        swap = json.load(answer)["last_swaps"][model]
    return ", ".join(f"{step} {1000 * seconds:.0f}" for step, seconds in swap["seconds"].items()) + " ms"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=16)
    pairs = parser.parse_args().pairs
    engines = {n: {"type": "generic_process", "start_cmd": command(n, "{port}")} for n in NAMES}
    by_hand = ByHand()
    ours, hands = [], []
    with contextlib.ExitStack() as stack:
        stack.callback(by_hand.end)
        port, _ = stack.enter_context(router({"engines": engines}))
        ways = [lambda name: routed(port, name), by_hand.swap]
        for turn in range(pairs * 3):
            name = NAMES[turn % 2]
            seconds = [(0.0, 0.0), (0.0, 0.0)]
            for which in (0, 1) if turn // 2 % 2 else (1, 0):
                time.sleep(IDLE_S)
                seconds[which] = ways[which](name)
            if turn < 2:
                continue  # the first start has nothing to stop, and the second nothing learned
            (our, _), (hand, _) = seconds
            is_slow = any(started_s > START_S + SLOWER_S for _, started_s in seconds)
            if not is_slow:
                ours.append(our)
                hands.append(hand)
            note = "  (an engine was slow: repeated)" if is_slow else ""
            print(f"  {our:.3f} / {hand:.3f} s (ours / by hand); ours: {steps(port, name)}{note}")
            if len(ours) == pairs:
                break
    if len(ours) < pairs:
        print("  this machine is too busy to tell: most starts were slow")
    print(f"  medians: {median(ours):.3f} s, by hand {median(hands):.3f} s")
    return 0 if show("first answer after a swap", median(ours) / median(hands), 1.15) else 1


if __name__ == "__main__":
    sys.exit(main())
