"""(c) 32 streams through the router and through the bare relay, in turns: CPU per chunk, and how long a chunk is late.

python benchmarks/streaming.py
"""

import asyncio
import re
import sys
import time

from rig import CHAT, bare_relay, cpu, median, request_bytes, router, show, stub_config, stub_engine

STREAMS, SECONDS, ROUNDS = 32, 4, 5
SENT = re.compile(rb'"content":"(\d{20})"')


class Reader(asyncio.Protocol):
    """Reads one stream to its end; counts its chunks, and notes how late each was if asked to."""

    def __init__(self, request: bytes, *, notes_delay: bool) -> None:
        self.request = request
        self.notes_delay = notes_delay
        self.chunks = 0
        self.delays_ns: list[int] = []
        self.tail = b""
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport) -> None:
        transport.write(self.request)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self.chunks += data.count(b'"content"')
        if self.notes_delay:
            self.delays_ns += [now - int(sent) for sent in SENT.findall(data)]
        self.tail = (self.tail + data)[-64:]
        if b"[DONE]" in self.tail and not self.done.done():
            self.done.set_result(None)
            self.transport.close()

    def connection_lost(self, error) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError("cut"))


def stream(port: int, rate: int, *, notes_delay: bool) -> list[Reader]:
    body = {**CHAT, "stream": True, "max_tokens": rate * SECONDS, "rate": rate}

    async def go() -> list[Reader]:
        loop = asyncio.get_running_loop()
        readers = [Reader(request_bytes(body), notes_delay=notes_delay) for _ in range(STREAMS)]
        for reader in readers:
            await loop.create_connection(lambda reader=reader: reader, "127.0.0.1", port)
            await asyncio.sleep(0.003)  # as clients come: not all in one instant
        await asyncio.gather(*(r.done for r in readers))
        return readers

    return asyncio.run(go())


def cpu_per_chunk(port: int, child) -> float:
    before = sum(cpu(child))
    readers = stream(port, 1000, notes_delay=False)
    return 1e6 * (sum(cpu(child)) - before) / sum(r.chunks for r in readers)


def late_p99_ms(port: int) -> float:
    delays = sorted(d for r in stream(port, 100, notes_delay=True) for d in r.delays_ns)
    return delays[int(len(delays) * 0.99)] / 1e6


def main() -> int:
    ok = True
    with stub_engine() as engine, bare_relay(engine) as (relay_port, relay), router(stub_config()) as (port, child):
        stream(port, 10, notes_delay=False)
        rows = []
        for _ in range(ROUNDS):
            row = (
                cpu_per_chunk(port, child),
                cpu_per_chunk(relay_port, relay),
                late_p99_ms(port),
                late_p99_ms(relay_port),
            )
            rows.append(row)
            print(
                f"  CPU {row[0]:5.1f} / {row[1]:5.1f} µs a chunk, p99 {row[2]:5.2f} / {row[3]:5.2f} ms (ours / relay)"
            )
        ok &= show("CPU per chunk, 32 x 1,000 chunks/s", median(r[0] / r[1] for r in rows), 1.2)
        ok &= show("p99 delay, 32 x 100 chunks/s", median(r[2] for r in rows) / median(r[3] for r in rows), 1.2)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
