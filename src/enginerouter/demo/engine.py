"""The built-in demo engine: no model and no GPU, but a real process that really holds memory.

    python -m enginerouter.demo.engine --port 18080 --name red --memory-mib 512 --load-s 3

It behaves as a good engine does. It listens at once (0.25 s after its start on a slow machine, nearly all of it
for importing aiohttp), answers 503 while it loads, fills its memory evenly over `--load-s`, so that free memory
can be seen to fall, then speaks the OpenAI API at `--tokens-per-s`. It stops talking when its client leaves;
on SIGTERM it lets go of its memory and ends with 0 within 0.1 s, cutting what it was saying.
The `--fail-…` flags make it behave as bad engines do.

It stands alone: nothing of the router is imported here, and what it says is in `replies`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import mmap
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler

from enginerouter.demo import replies
from enginerouter.demo.replies import Answer, Json, Refused

log = logging.getLogger("demo-engine")

MIB = 1024 * 1024
FILL_STEP_BYTES = 4 * MIB  # about a millisecond: the time for which filling keeps /health waiting
MAX_BODY_BYTES = 64 * MIB


@dataclass(frozen=True, slots=True)
class Settings:
    host: str
    port: int
    name: str
    memory_mib: int
    load_s: float
    tokens_per_s: float  # 0: without waiting
    fail_load: bool  # ends with 1 halfway through loading
    fail_ready: bool  # never becomes ready
    fail_after_tokens: int | None  # dies in the middle of an answer


class LoadFailed(Exception):
    pass


class HeldMemory:
    """Anonymous memory whose pages are really there, filled step by step and given back by `close`."""

    def __init__(self, size_bytes: int) -> None:
        self._size = size_bytes
        self._filled = 0
        # Private, where mmap's default is shared: shared pages would be counted as shared memory, not as ours.
        kind = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        self._map = mmap.mmap(-1, max(size_bytes, mmap.PAGESIZE), **kind)
        if hasattr(mmap, "MADV_HUGEPAGE"):  # a gigabyte of small pages takes 0.1 s to give back
            with contextlib.suppress(OSError):  # a kernel without them
                self._map.madvise(mmap.MADV_HUGEPAGE)
        self._noise = os.urandom(FILL_STEP_BYTES)  # zeros could be shared or compressed away

    def fill_towards(self, share: float) -> bool:
        """Fill one step if less than `share` of the whole is filled; return whether it did."""
        goal = min(self._size, int(self._size * share))
        step = min(FILL_STEP_BYTES, goal - self._filled)
        if step <= 0:
            return False
        self._map[self._filled : self._filled + step] = self._noise[:step]
        self._filled += step
        return True

    def close(self) -> None:
        self._map.close()


class DemoEngine:
    """The engine's state: what it holds, whether it is ready, and how many answers it is giving."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.is_ready = False
        self.generating = 0
        self._memory: HeldMemory | None = None

    async def load(self) -> None:
        """Fill the memory evenly over `load_s`, then be ready. Raises LoadFailed."""
        now = asyncio.get_running_loop().time
        settings, started_at = self.settings, now()
        try:
            self._memory = memory = HeldMemory(settings.memory_mib * MIB)
        except (OSError, ValueError, OverflowError) as error:
            raise LoadFailed(f"cannot hold {settings.memory_mib} MiB: {error}") from error
        log.info("loading %s: %d MiB over %g s", settings.name, settings.memory_mib, settings.load_s)
        while True:
            share = min(1.0, (now() - started_at) / settings.load_s) if settings.load_s > 0 else 1.0
            if settings.fail_load and share >= 0.5:
                raise LoadFailed("--fail-load was asked for")
            if memory.fill_towards(share):
                await asyncio.sleep(0)
            elif share < 1:
                await asyncio.sleep(0.01)
            else:
                break
        if settings.fail_ready:
            log.info("loaded, but --fail-ready keeps it from being ready")
            return
        self.is_ready = True
        log.info("ready after %.2f s", now() - started_at)

    def free(self) -> None:
        self.is_ready = False
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    # --- what it serves ---

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._guard])
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{name}", self._model)
        app.router.add_post("/v1/chat/completions", self._generation(replies.chat_answer))
        app.router.add_post("/v1/completions", self._generation(replies.text_answer))
        app.router.add_post("/v1/responses", self._generation(replies.response_answer))
        app.router.add_post("/v1/embeddings", self._embeddings)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Everything answers 503 while the engine loads, and errors have the shape that OpenAI clients read."""
        try:
            if not self.is_ready:
                raise Refused(503, "Loading model")
            return await handler(request)
        except Refused as error:
            return web.json_response(error.body, status=error.status)
        except web.HTTPException as error:  # aiohttp's own 404, 405 and 413
            body = Refused(error.status, f"{error.reason}: {request.path}").body
            headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
            return web.json_response(body, status=error.status, headers=headers)

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "generating": self.generating})

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._own_model()]})

    async def _model(self, request: web.Request) -> web.Response:
        replies.check_model({"model": request.match_info["name"]}, self.settings.name)
        return web.json_response(self._own_model())

    def _own_model(self) -> Json:
        return {"id": self.settings.name, "object": "model", "created": 0, "owned_by": "enginerouter-demo"}

    async def _embeddings(self, request: web.Request) -> web.Response:
        return web.json_response(replies.embeddings(await self._body(request), self.settings.name))

    async def _body(self, request: web.Request) -> Json:
        try:
            body = json.loads(await request.read())
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"The body is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise Refused(400, "The body must be a JSON object.")
        replies.check_model(body, self.settings.name)
        return body

    def _generation(self, read: Callable[[Json, str], Answer]) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            body = await self._body(request)
            answer = read(body, self.settings.name)
            self.generating += 1
            try:
                if body.get("stream") is True:
                    return await self._stream(request, answer)
                pace = Pace(self.settings)
                for _ in answer.words:
                    await pace.next_token()
                return web.json_response(replies.whole(answer))
            except (asyncio.CancelledError, ConnectionError):
                log.info("the client left; stopped talking")
                raise
            finally:
                self.generating -= 1

        return handle

    async def _stream(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        pace = Pace(self.settings)
        for frame, is_word in replies.frames(answer):
            if is_word:
                await pace.next_token()
            event = f"event: {frame['type']}\n" if answer.kind == "response" else ""
            await response.write(f"{event}data: {json.dumps(frame)}\n\n".encode())
        if answer.kind != "response":
            await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


class Pace:
    """Waits so that tokens come at `tokens_per_s`, whatever else takes time; dies where it was told to."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._now = asyncio.get_running_loop().time
        self._started_at = self._now()
        self._said = 0

    async def next_token(self) -> None:
        if self._said == self._settings.fail_after_tokens:
            log.error("dying: --fail-after-tokens was asked for")
            os.abort()
        self._said += 1
        wait_s = 0.0
        if self._settings.tokens_per_s > 0:
            wait_s = self._started_at + self._said / self._settings.tokens_per_s - self._now()
        await asyncio.sleep(max(0.0, wait_s))


# --- the process -------------------------------------------------------------------------------------------


async def serve(settings: Settings) -> int:
    """Load and serve until SIGTERM or SIGINT; return the exit status."""
    stop = asyncio.Event()
    _on_signals(stop.set)
    engine = DemoEngine(settings)
    runner = web.AppRunner(engine.app(), access_log=None, handler_cancellation=True, shutdown_timeout=0.01)
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
    except OSError as error:
        log.error("couldn't bind %s:%d: %s", settings.host, settings.port, error.strerror)
        await runner.cleanup()
        return 1
    log.info("%s listens on http://%s:%d", settings.name, settings.host, settings.port)
    stopping = asyncio.ensure_future(stop.wait())
    loading = asyncio.ensure_future(engine.load())
    try:
        await asyncio.wait({stopping, loading}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
        await stopping
        log.info("stopping: %d answers cut", engine.generating)
        return 0
    except LoadFailed as error:
        log.error("failed to load model: %s", error)
        return 1
    finally:
        loading.cancel()
        engine.free()
        await runner.cleanup()


def _on_signals(stop: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, stop)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))


def parse(argv: list[str] | None) -> Settings:
    parser = argparse.ArgumentParser(
        prog="python -m enginerouter.demo.engine",
        description="A demo engine: a real process that holds real memory and speaks the OpenAI API.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", required=True, help="the model's name; every answer says it")
    parser.add_argument("--memory-mib", type=_not_negative(int), default=512, help="memory it holds; default: 512")
    parser.add_argument("--load-s", type=_not_negative(float), default=3.0, help="seconds to load; default: 3")
    parser.add_argument("--tokens-per-s", type=_not_negative(float), default=20.0, help="default: 20; 0: no limit")
    parser.add_argument("--fail-load", action="store_true", help="end with 1 halfway through loading")
    parser.add_argument("--fail-ready", action="store_true", help="load, but never become ready")
    parser.add_argument(
        "--fail-after-tokens", type=_not_negative(int), metavar="N", help="die after N words of an answer"
    )
    return Settings(**vars(parser.parse_args(argv)))


def _not_negative(kind: Callable[[str], float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if not 0 <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be 0 or more, not {text}")
        return value

    number.__name__ = "number"  # argparse says "invalid number value"
    return number


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    return asyncio.run(serve(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
