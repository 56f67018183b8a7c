"""(f) Streams of an OpenAI engine, translated for Ollama and Anthropic clients, against the same ones passed through.

Measured in a bare relay, where passing through costs least, so that the ratio is the worst there can be; and in a whole
router.

python benchmarks/translate.py
"""

import asyncio
import contextlib
import sys
import time

from rig import CHAT, HERE, cpu, free_port, median, process, request_bytes, router, show, stub_config, stub_engine

STREAMS, SECONDS, RATE, ROUNDS = 32, 4, 500, 5
# The path, what a chunk is counted by, what ends the stream.
DIALECTS = {
    "OpenAI, passed through": ("/v1/chat/completions", b'"content"', b"[DONE]"),
    "Ollama": ("/api/chat", b'"done":false', b'"done":true'),
    "Anthropic": ("/v1/messages", b'"text_delta"', b"message_stop"),
}


class Reader(asyncio.Protocol):
    """Reads one stream to its end, and counts its chunks."""

    def __init__(self, request: bytes, mark: bytes, end: bytes) -> None:
        self.request, self.mark, self.end = request, mark, end
        self.chunks = 0
        self.tail = b""
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport) -> None:
        transport.write(self.request)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.chunks += data.count(self.mark)
        self.tail = (self.tail + data)[-512:]
        if self.end in self.tail and not self.done.done():
            self.done.set_result(None)
            self.transport.close()

    def connection_lost(self, error) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError("cut"))


def chunks_read(port: int, path: str, mark: bytes, end: bytes, rate: int) -> int:
    # What Ollama has no word for stays as it is, so that one body serves all three.
    body = {**CHAT, "stream": True, "max_tokens": rate * SECONDS, "rate": rate}

    async def go() -> int:
        loop = asyncio.get_running_loop()
        readers = [Reader(request_bytes(body, path), mark, end) for _ in range(STREAMS)]
        for reader in readers:
            await loop.create_connection(lambda reader=reader: reader, "127.0.0.1", port)
            await asyncio.sleep(0.003)
        await asyncio.gather(*(r.done for r in readers))
        return sum(r.chunks for r in readers)

    return asyncio.run(go())


@contextlib.contextmanager
def translating_relay(engine_port: int):
    port = free_port()
    script = str(HERE / "translating_relay.py")
    with process(sys.executable, script, str(port), f"http://127.0.0.1:{engine_port}") as relay:
        yield port, relay


def wait_until_warm(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            for path, mark, end in DIALECTS.values():
                chunks_read(port, path, mark, end, 10)
            return
        time.sleep(0.05)
    raise SystemExit(f"nothing translates on port {port}")


def is_cheap(where: str, port: int, child) -> bool:
    wait_until_warm(port)
    rows = []
    for _ in range(ROUNDS):
        row = {}
        for name, (path, mark, end) in DIALECTS.items():
            before = sum(cpu(child))
            chunks = chunks_read(port, path, mark, end, RATE)
            if chunks != STREAMS * RATE * SECONDS:
                raise SystemExit(f"{name}: {chunks} chunks arrived of {STREAMS * RATE * SECONDS}")
            row[name] = 1e6 * (sum(cpu(child)) - before) / chunks
        rows.append(row)
        print(f"  {where}, CPU a chunk: " + ", ".join(f"{name} {us:5.1f} µs" for name, us in row.items()))
    passed, *translated = DIALECTS
    ratios = {name: median(r[name] / r[passed] for r in rows) for name in translated}
    shown = [show(f"{where}: CPU per chunk translated for {name}", ratio, 2.5) for name, ratio in ratios.items()]
    return all(shown)


def main() -> int:
    with stub_engine() as engine, translating_relay(engine) as (port, relay):
        ok = is_cheap("bare relay", port, relay)
    with router(stub_config()) as (port, child):
        ok &= is_cheap("router", port, child)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
