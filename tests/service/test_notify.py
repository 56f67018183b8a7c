"""What systemd hears, read from a real datagram socket."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from enginerouter.service.notify import Notifier, feed_watchdog


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


def heard(manager: socket.socket) -> list[dict[str, str]]:
    """All messages so far, as their variables."""
    messages = []
    while True:
        try:
            text = manager.recv(4096).decode()
        except BlockingIOError:
            return messages
        messages.append(dict(line.split("=", 1) for line in text.splitlines()))


def environment(manager: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": manager.getsockname(), **more}


def test_its_life_is_told_in_order(manager: socket.socket) -> None:
    notifier = Notifier.from_environment(environment(manager))
    notifier.ready("listening on http://127.0.0.1:8077")
    notifier.reloading()
    notifier.ready("listening")
    notifier.stopping(50.0)
    ready, reloading, again, stopping = heard(manager)
    assert ready == {"READY": "1", "STATUS": "listening on http://127.0.0.1:8077"}
    assert (reloading["RELOADING"], again["READY"]) == ("1", "1")
    assert int(reloading["MONOTONIC_USEC"]) > 0
    assert (stopping["STOPPING"], stopping["EXTEND_TIMEOUT_USEC"]) == ("1", "50000000")


def test_without_a_manager_nobody_is_told() -> None:
    Notifier.from_environment({}).ready("listening")


def test_an_abstract_address_is_heard() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0enginerouter-test-{os.getpid()}")
        Notifier.from_environment({"NOTIFY_SOCKET": f"@enginerouter-test-{os.getpid()}"}).alive()
        assert sock.recv(100) == b"WATCHDOG=1"


def test_a_manager_that_is_gone_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Notifier.from_environment({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("listening")
    assert "the service manager was not told 'READY=1'" in caplog.text


@pytest.mark.parametrize(
    ("variables", "period_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "²"}, None),
    ],
)
def test_a_watchdog_counts_if_it_watches_us(
    manager: socket.socket, variables: dict[str, str], period_s: float | None
) -> None:
    assert Notifier.from_environment(environment(manager, **variables)).watchdog_s == period_s


async def test_the_watchdog_is_fed_while_the_coordinator_turns_and_not_when_it_is_stuck(
    manager: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier.from_environment(environment(manager, WATCHDOG_USEC="2000"))
    silent, asked = [0.0], asyncio.Event()

    def seconds_since_turn() -> float:
        asked.set()
        return silent[0]

    async def fed_for(turns: int) -> list[dict[str, str]]:
        heard(manager)
        for _ in range(turns):
            asked.clear()
            await asyncio.wait_for(asked.wait(), 5)
        return heard(manager)

    feeding = asyncio.ensure_future(feed_watchdog(notifier, seconds_since_turn, stuck_after_s=10))
    try:
        assert {"WATCHDOG": "1"} in await fed_for(3)
        silent[0] = 60.0
        await fed_for(1)
        with caplog.at_level(logging.ERROR):
            assert await fed_for(5) == []
        silent[0] = 0.0
        assert {"WATCHDOG": "1"} in await fed_for(3)
    finally:
        feeding.cancel()
    assert caplog.text.count("has not turned for 60 s") <= 1


async def test_where_nobody_watches_feeding_ends_at_once(manager: socket.socket) -> None:
    await feed_watchdog(Notifier.from_environment(environment(manager)), lambda: 0.0, 10)
    assert heard(manager) == []
