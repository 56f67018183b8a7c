"""A real redis-server for tests marked `real`, on a port of its own, without a file on disk.

    with running_redis() as redis: ... redis.url, redis.kill(), redis.freeze(), redis.thaw(), redis.start()

Where none is installed the test is skipped – or fails when ENGINEROUTER_NEED_REDIS=1 is set, as .ci/run does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest


def need_redis_server() -> str:
    found = shutil.which("redis-server")
    if found is None:
        why = "there is no redis-server (Debian, Ubuntu: apt install redis-server)"
        if os.environ.get("ENGINEROUTER_NEED_REDIS") == "1":
            pytest.fail(why)
        pytest.skip(why)
    return found


class RedisServer:
    def __init__(self, program: str, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._command += options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ends_at = time.monotonic() + 10
        while b"PONG" not in self.said(b"PING"):
            assert time.monotonic() < ends_at, "redis-server did not start"
            time.sleep(0.01)

    def said(self, *words: bytes) -> bytes:
        """The answer to one command, as it comes; nothing if nobody listens."""
        command = b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                connection.sendall(command)
                return connection.recv(1 << 20)
        except OSError:
            return b""

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def running_redis(*options: str) -> Iterator[RedisServer]:
    server = RedisServer(need_redis_server(), *options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
