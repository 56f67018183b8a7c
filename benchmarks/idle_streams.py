"""(d) 500 streams that are open and silent: memory of the router for each of them.

python benchmarks/idle_streams.py
"""

import asyncio
import sys

from rig import CHAT, request_bytes, router, show, stub_config

STREAMS = 500


class Open(asyncio.Protocol):
    """One stream that has begun to answer; then nothing more comes."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.has_begun = asyncio.get_running_loop().create_future()

    def connection_made(self, transport) -> None:
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if b'"content"' in data and not self.has_begun.done():
            self.has_begun.set_result(None)


async def open_streams(port: int, count: int) -> list[Open]:
    body = {**CHAT, "stream": True, "max_tokens": 1, "rate": 0}
    loop = asyncio.get_running_loop()
    streams = []
    for _ in range(count):
        _, stream = await loop.create_connection(lambda: Open(request_bytes(body)), "127.0.0.1", port)
        streams.append(stream)
    await asyncio.wait_for(asyncio.gather(*(s.has_begun for s in streams)), 60)
    return streams


def main() -> int:
    async def measure(port, child) -> float:
        warm = await open_streams(port, 20)
        for stream in warm:
            stream.transport.close()
        await asyncio.sleep(1)
        before = child.memory_info().rss
        streams = await open_streams(port, STREAMS)
        await asyncio.sleep(1)
        after = child.memory_info().rss
        for stream in streams:
            stream.transport.close()
        print(f"  {len(streams)} of {STREAMS} streams are open; {before >> 20} MiB before, {after >> 20} MiB with them")
        return (after - before) / STREAMS / 1024

    config = {**stub_config(), "max_queued_requests": 1000}
    with router(config) as (port, child):
        each = asyncio.run(measure(port, child))
        return 0 if show("memory per idle stream", each, 48, "KiB") else 1


if __name__ == "__main__":
    sys.exit(main())
