"""An engine that costs nearly nothing, so that what is measured is the proxy in front of it.

Answers /health at once, a small JSON chat at once, and streams chunks at a fixed rate when `"stream": true` is asked
for: `"max_tokens"` of them, `"rate"` a second (0: one, then silence). Each chunk carries the moment it was sent
(monotonic nanoseconds), so that a reader on the same machine knows how long it was on its way.

python benchmarks/stub_engine.py PORT
"""

import asyncio
import json
import sys
import time

ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1767225600,
        "model": "stub",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello there."}}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
    }
).encode()
PLAIN = (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(ANSWER)) + ANSWER
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Stub(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        self.buffer = b""
        self.streaming = None

    def connection_lost(self, error):
        if self.streaming is not None:
            self.streaming.cancel()

    def data_received(self, data):
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            body, self.buffer = self.buffer[end + 4 : end + 4 + length], self.buffer[end + 4 + length :]
            if b'"stream": true' in body or b'"stream":true' in body:
                asked = json.loads(body)
                self.streaming = asyncio.ensure_future(self.stream(asked["max_tokens"], asked["rate"]))
            else:
                self.transport.write(PLAIN)

    async def stream(self, count, rate):
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        self.transport.write(STREAM)
        for number in range(count):
            if rate:
                await asyncio.sleep(max(0.0, began_at + number / rate - loop.time()))
            chunk = (
                b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1767225600,"model":"stub",'
                b'"choices":[{"index":0,"delta":{"content":"%020d"},"finish_reason":null}]}\n\n' % time.monotonic_ns()
            )
            self.transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            if not rate:
                await asyncio.sleep(3600)
        self.transport.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


async def main():
    server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", int(sys.argv[1]), backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
