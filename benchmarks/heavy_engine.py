"""An engine that holds real memory and needs a set time from spawn to ready, and nothing that varies.

Listens at once, answers 503 until it has filled `--memory-mib` and `--start-s` have passed since its process was made;
then answers each POST with a small JSON chat after `--answer-s`; `started_s` in it says how long it really took to be
ready (a busy machine may need longer to hand out the memory). SIGTERM ends it like most engines: at once.

python benchmarks/heavy_engine.py PORT --name red [--memory-mib 1024] [--start-s 0.5] [--answer-s 0]
"""

import argparse
import asyncio
import contextlib
import json
import mmap
import os
import signal
import threading
import time

MIB = 1024 * 1024
STEP = 4 * MIB


def seconds_since_spawn() -> float:
    with open("/proc/self/stat", "rb") as stat:
        started = int(stat.read().rsplit(b")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


class Engine:
    def __init__(self, name: str, memory_mib: int, start_s: float, answer_s: float) -> None:
        self.memory_mib = memory_mib
        self.start_s = start_s
        self.answer_s = answer_s
        self.is_ready = False
        self.name = name
        self.answer = b""

    def load(self) -> None:
        """In a thread of its own; filling gives the interpreter back every few milliseconds."""
        if self.memory_mib:
            self.held = mmap.mmap(-1, self.memory_mib * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with contextlib.suppress(OSError):
                self.held.madvise(mmap.MADV_HUGEPAGE)
            noise = os.urandom(STEP)
            for at in range(0, self.memory_mib * MIB, STEP):
                self.held[at : at + STEP] = noise
        time.sleep(max(0.0, self.start_s - seconds_since_spawn()))
        said = {"role": "assistant", "content": f"{self.name} here."}
        answer = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1767225600,
            "model": self.name,
            "choices": [{"index": 0, "finish_reason": "stop", "message": said}],
            "started_s": seconds_since_spawn(),
        }
        self.answer = _http(200, json.dumps(answer).encode())
        self.is_ready = True


class Connection(asyncio.Protocol):
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.buffer = b""

    def connection_made(self, transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            self.buffer = self.buffer[end + 4 + length :]
            if not self.engine.is_ready:
                self.transport.write(_http(503, b'{"error": {"code": 503, "message": "Loading model"}}'))
            elif head.startswith(b"get"):
                self.transport.write(_http(200, b'{"status": "ok"}'))
            else:
                loop = asyncio.get_running_loop()
                loop.call_later(self.engine.answer_s, self.transport.write, self.engine.answer)


def _http(status: int, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--name", default="heavy")
    parser.add_argument("--memory-mib", type=int, default=1024)
    parser.add_argument("--start-s", type=float, default=0.5)
    parser.add_argument("--answer-s", type=float, default=0.0)
    options = parser.parse_args()
    engine = Engine(options.name, options.memory_mib, options.start_s, options.answer_s)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(engine), "127.0.0.1", options.port)
    threading.Thread(target=engine.load, daemon=True).start()
    await server.serve_forever()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    asyncio.run(main())
