"""The yardstick: the shortest aiohttp relay that does the job for one engine, and nothing else.

python benchmarks/bare_relay.py PORT ENGINE_URL
"""

import sys

import aiohttp
from aiohttp import web

DROPPED = {"host", "content-length", "transfer-encoding", "connection"}
SESSION = web.AppKey("session", aiohttp.ClientSession)


async def relay(request: web.Request) -> web.StreamResponse:
    body = await request.read()
    headers = {k: v for k, v in request.headers.items() if k.lower() not in DROPPED}
    async with request.app[SESSION].post(ENGINE + request.path_qs, data=body, headers=headers) as answer:
        response = web.StreamResponse(status=answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in DROPPED:
                response.headers[name] = value
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response


async def session(app: web.Application):
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, auto_decompress=False) as made:
        app[SESSION] = made
        yield


def serve(handler, paths: str) -> None:
    app = web.Application(client_max_size=1 << 30)
    app.router.add_post(paths, handler)
    app.cleanup_ctx.append(session)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)


if __name__ == "__main__":
    ENGINE = sys.argv[2]
    serve(relay, "/v1/{path:.*}")
