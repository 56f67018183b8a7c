"""The bare relay, with translation: an Ollama or Anthropic client gets the OpenAI stream of the engine translated.

python benchmarks/translating_relay.py PORT ENGINE_URL
"""

import sys
import time

from aiohttp import web
from bare_relay import SESSION, serve

from enginerouter.dialects.base import Times
from enginerouter.dialects.translation import ANTHROPIC, OLLAMA, OPENAI, payload, plan


async def relay(request: web.Request) -> web.StreamResponse:
    raw, path = await request.read(), request.path
    client = OLLAMA if path.startswith("/api/") else ANTHROPIC if path == "/v1/messages" else OPENAI
    translation = None
    if client is not OPENAI:
        translation = plan(client, path, await request.json(), ["openai"], answer_id="1")
        path, raw = translation.path, payload(translation.body)
    times = Times(time.monotonic(), time.time())
    async with request.app[SESSION].post(ENGINE + path, data=raw) as answer:
        response = web.StreamResponse(status=answer.status, headers={"Content-Type": client.stream_type})
        await response.prepare(request)
        if translation is None:
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
        else:
            stream = translation.stream(times)
            async for chunk in answer.content.iter_any():
                if out := stream.feed(chunk, time.monotonic()):
                    await response.write(out)
        await response.write_eof()
        return response


if __name__ == "__main__":
    ENGINE = sys.argv[2]
    serve(relay, "/{path:.*}")
