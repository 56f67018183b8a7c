"""What the benchmarks share: processes to measure, their CPU time, and a client that costs little."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

HERE = Path(__file__).parent
CHAT = {"model": "stub", "messages": [{"role": "user", "content": "Say hello to the people over there. " * 8}]}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_up(port: int, path: str = "/health") -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2).read()
            return
        time.sleep(0.05)
    raise SystemExit(f"nothing answers on port {port}")


@contextlib.contextmanager
def process(*argv: str, cwd: Path | None = None):
    """A process in its own session, ended with SIGTERM."""
    child = subprocess.Popen(argv, cwd=cwd, start_new_session=True)
    try:
        yield psutil.Process(child.pid)
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)


@contextlib.contextmanager
def stub_engine():
    port = free_port()
    with process(sys.executable, str(HERE / "stub_engine.py"), str(port)):
        wait_until_up(port)
        yield port


@contextlib.contextmanager
def bare_relay(engine_port: int):
    port = free_port()
    with process(sys.executable, str(HERE / "bare_relay.py"), str(port), f"http://127.0.0.1:{engine_port}") as relay:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield port, relay


@contextlib.contextmanager
def router(config: dict):
    """A router as a user runs it, log file and all."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="enginerouter-bench-") as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(json.dumps({"port": port, **config}))
        argv = (sys.executable, "-m", "enginerouter", "--config", str(path))
        with open(Path(folder) / "stderr.log", "wb") as log:
            child = subprocess.Popen(argv, cwd=folder, start_new_session=True, stderr=log)
        try:
            wait_until_up(port)
            yield port, psutil.Process(child.pid)
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(30)


def stub_config() -> dict:
    start = [sys.executable, str(HERE / "stub_engine.py"), "{port}"]
    return {"engines": {"stub": {"type": "generic_process", "start_cmd": start}}}


def cpu(child: psutil.Process) -> tuple[float, float]:
    """User and system seconds so far."""
    times = child.cpu_times()
    return times.user, times.system


def request_bytes(body: dict, path: str = "/v1/chat/completions") -> bytes:
    payload = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        "Accept: */*\r\nUser-Agent: bench\r\nAuthorization: Bearer sk-none\r\n"
        f"Content-Length: {len(payload)}\r\n\r\n"
    )
    return head.encode() + payload


class Client(asyncio.Protocol):
    """One kept connection that asks again and again, and notes how long each answer took."""

    def __init__(self, request: bytes, until: float) -> None:
        self.request = request
        self.until = until
        self.seconds: list[float] = []
        self.buffer = b""
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.asked_at = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.buffer[:end].lower()
        at = head.find(b"content-length:")
        if at >= 0:
            if len(self.buffer) < end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0]):
                return
        elif not self.buffer.endswith(b"0\r\n\r\n"):
            return
        if not head.startswith(b"http/1.1 200"):
            self.done.set_exception(RuntimeError(self.buffer[:300].decode()))
            return
        self.seconds.append(time.perf_counter() - self.asked_at)
        self.buffer = b""
        if time.perf_counter() < self.until:
            self.ask()
        else:
            self.transport.close()
            self.done.set_result(None)

    def connection_lost(self, error) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError("closed"))


def ask_for(port: int, seconds: float, connections: int) -> list[float]:
    """Every answer's seconds, from `connections` clients that ask again at once."""

    async def go() -> list[float]:
        loop = asyncio.get_running_loop()
        until = time.perf_counter() + seconds
        clients = [Client(request_bytes(CHAT), until) for _ in range(connections)]
        for client in clients:
            await loop.create_connection(lambda client=client: client, "127.0.0.1", port)
        await asyncio.gather(*(c.done for c in clients))
        return [s for c in clients for s in c.seconds]

    return asyncio.run(go())


def show(what: str, figure: float, limit: float, unit: str = "x", *, at_least: bool = False) -> bool:
    """One line of a result beside its limit."""
    is_met = figure >= limit if at_least else figure <= limit
    sign = ">=" if at_least else "<="
    print(f"  {what:<58} {figure:8.2f} {unit:<4} (limit {sign} {limit:g} {unit}) {'ok' if is_met else 'MISSED'}")
    return is_met


def median(values) -> float:
    return statistics.median(values)
