"""Run one router until a signal says stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import AsyncIterator, Callable, Coroutine

from enginerouter.config.load import Loaded
from enginerouter.config.model import Config
from enginerouter.service.hangup import EarlyHangup
from enginerouter.service.notify import Notifier, feed_watchdog
from enginerouter.service.sockets import given_socket
from enginerouter.tasks import TaskGroup
from enginerouter.web.app import Router
from enginerouter.web.control import STUCK_AFTER_S
from enginerouter.web.listener import parser_problem
from enginerouter.web.logs import FLUSH_EVERY_S, CollectingHandler, set_up
from enginerouter.web.slots_of import stop_s

log = logging.getLogger(__name__)

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
# Objects made since the last collection before the next one; Python's 700 is reached every ten requests.
COLLECT_AFTER = 20_000


def serve(loaded: Loaded, early: EarlyHangup) -> int:
    """Serve until SIGTERM or Ctrl-C; a second one ends it at once. Gives the exit status. Raises CannotListen."""
    config = loaded.config
    output = set_up(config.log_level, config.log_file, config.log_format)
    try:
        for warning in loaded.warnings:
            log.warning("%s", warning)
        _warn_of_exposure(config)
        return asyncio.run(_serve(config, output, early))
    finally:
        logging.shutdown()


def _warn_of_exposure(config: Config) -> None:
    if config.host not in LOOPBACK and not config.api_keys:
        log.warning(
            "listening on %s without api_keys: everybody who can reach this port can use and control the engines",
            config.host,
        )
    if problem := parser_problem():
        log.warning("%s", problem)


async def _serve(config: Config, output: CollectingHandler, early: EarlyHangup) -> int:
    router = Router(config, sock=given_socket())
    notifier = Notifier.from_environment()
    tasks = TaskGroup()
    tasks.spawn(_flush(output), "flush the log")
    async with signals(on_hangup=router.reloader.request) as stop:
        try:
            if await finished(router.start(), stop):
                log.info("listening on http://%s:%d, engines: %s", config.host, router.port, ", ".join(router.engines))
                is_listening = f"listening on http://{config.host}:{router.port}"
                notifier.ready(is_listening)
                router.reloader.began = notifier.reloading
                router.reloader.ended = lambda: notifier.ready(is_listening)
                tasks.spawn(
                    feed_watchdog(notifier, router.coordinator.seconds_since_turn, STUCK_AFTER_S), "feed the watchdog"
                )
                _collect_less()
                if early.came:
                    router.reloader.request()
                await stop.wait()
            config = router.config  # as of the last reload
            notifier.stopping(stop_s(config))
            log.info("stopping: running answers have %g s", config.shutdown_timeout_s)
            status = await stop_router(router, stop)
            log.info("stopped")
            return status
        finally:
            await tasks.close()


def _collect_less() -> None:
    """What is here now stays: looking at it for garbage again and again costs 2 to 3 % of a small request."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 10, 10)


async def finished(work: Coroutine[None, None, None], stop: asyncio.Event) -> bool:
    """Do the work, unless `stop` is set first: then it is cancelled. Whether it was done; its errors are raised."""
    tasks = TaskGroup()
    doing = tasks.spawn(work, "work until stopped", is_awaited=True)
    stopping = tasks.spawn(stop.wait(), "wait for a signal")
    try:
        await asyncio.wait({doing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            return False
        doing.result()
        return True
    finally:
        await tasks.close()


async def stop_router(router: Router, stop: asyncio.Event) -> int:
    """Stop in order; a second signal ends it where it is. What is left running is found again at the next start."""
    stop.clear()
    if await finished(router.stop(), stop):
        return 0
    log.warning("stopped at once; engines still running are taken over or ended at the next start")
    return 1


@contextlib.asynccontextmanager
async def signals(on_hangup: Callable[[], None] = lambda: None) -> AsyncIterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set. SIGHUP does not end the router: `on_hangup` is called."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    handlers: dict[str, Callable[[], None]] = {"SIGTERM": stop.set, "SIGINT": stop.set, "SIGHUP": on_hangup}
    installed = []
    for name, handler in handlers.items():
        # Windows has no SIGHUP, and its loops no signal handlers.
        with contextlib.suppress(NotImplementedError):
            if (number := getattr(signal, name, None)) is not None:
                loop.add_signal_handler(number, handler)
                installed.append(number)
    try:
        yield stop
    finally:
        for number in installed:
            loop.remove_signal_handler(number)


async def _flush(output: CollectingHandler) -> None:
    while True:
        await asyncio.sleep(FLUSH_EVERY_S)
        output.flush()
