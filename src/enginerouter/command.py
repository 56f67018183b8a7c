"""Short commands of other programs (`systemctl`, `nvidia-smi`): run in the background, bounded, and ended whole.

A command is a session of its own, so that one that takes too long is killed with all that it started: what is on PATH
may be a wrapper script, and its child would go on, and hold our end of its output open.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from enginerouter.errors import printable

_KILL_GRACE_S = 1.0


@dataclass(frozen=True, slots=True)
class Said:
    """How a command ended. `status` None: it did not answer within `seconds` and was ended, or could not be run.

    `command` is for messages, as `hint`: what to do where it gave no answer. `left_pid`: of one that could not be
    killed, 0 where all went.
    """

    command: str
    status: int | None
    out: str = ""
    error: str = ""
    seconds: float = 0.0
    left_pid: int = 0
    hint: str = ""

    @property
    def is_ok(self) -> bool:
        return self.status == 0

    @property
    def hung(self) -> bool:
        return self.status is None and not self.error

    def problem(self) -> str:
        """What went wrong, in words."""
        hint = f"; {self.hint}" if self.hint and self.status is None else ""
        if self.hung:
            return f"`{self.command}` did not answer within {self.seconds:g} s and was ended{hint}"
        words = printable(" ".join((self.error or self.out).split()), 300)
        if self.status is None:
            return f"`{self.command}` cannot be run: {words}{hint}"
        if not words:
            return f"`{self.command}` failed with status {self.status}"
        return f"{words} (`{self.command}`)"


class _Output(asyncio.SubprocessProtocol):
    """What a command prints, and its end: of itself, and of everybody who holds its output open."""

    def __init__(self) -> None:
        self.printed = {1: bytearray(), 2: bytearray()}
        self.is_over = asyncio.Event()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.printed[fd] += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_over.set()

    def text(self, fd: int) -> str:
        return self.printed[fd].decode(errors="replace")


async def run(
    argv: Sequence[str], timeout_s: float, *, env: Mapping[str, str] | None = None, shown: str | None = None
) -> Said:
    """Run it to its end. `shown` stands for it in messages; `env` None is our own environment."""
    command = shown or " ".join(argv)
    began = time.monotonic()
    loop = asyncio.get_running_loop()
    whole = dict(env) if env is not None else None
    try:
        transport, output = await loop.subprocess_exec(
            _Output, *argv, stdin=asyncio.subprocess.DEVNULL, env=whole, start_new_session=True
        )
    except (OSError, ValueError) as error:
        return Said(command, None, error=str(error))
    left_pid = 0
    try:
        is_over = await _within(output, timeout_s)
    finally:
        try:
            left_pid = 0 if output.is_over.is_set() else await _end(transport, output)
        finally:
            transport.close()  # also where somebody that left the session keeps the output open
    if not is_over:
        return Said(command, None, seconds=timeout_s, left_pid=left_pid)
    return Said(command, transport.get_returncode(), output.text(1), output.text(2), time.monotonic() - began)


async def _within(output: _Output, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await output.is_over.wait()
    return output.is_over.is_set()


async def _end(transport: asyncio.SubprocessTransport, output: _Output) -> int:
    """Kill it with all it started. Gives its pid if it is there all the same."""
    pid = transport.get_pid()
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(pid, signal.SIGKILL)
        else:
            transport.kill()
    await _within(output, _KILL_GRACE_S)
    return pid if transport.get_returncode() is None else 0
