"""One launched process tree in our hands: its leader, how its end is noticed, who belongs to it.

The leader of a tree we spawned stays unreaped until the tree is gone: as long as it is, its pid, group and session
numbers cannot become somebody else's. An adopted leader is not our child; its end is seen, its status is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from enginerouter.engines import proctree
from enginerouter.engines.enginelog import EngineLog, Mark
from enginerouter.engines.launch import Launch
from enginerouter.engines.proctree import ProcessKey
from enginerouter.tasks import TaskGroup

log = logging.getLogger(__name__)

_POLL_S = 0.1
_MOST_WATCHED = 64


class ExitWatch:
    """`gone` is done as soon as the process has ended: told by the kernel where it can, polled elsewhere."""

    def __init__(self, key: ProcessKey, tasks: TaskGroup) -> None:
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._key = key
        self._handle: int | None = None
        self._poll: asyncio.Task[None] | None = None
        try:
            self._handle = os.pidfd_open(key.pid)
            asyncio.get_running_loop().add_reader(self._handle, self._ended)
        except ProcessLookupError:
            self._ended()
        except (AttributeError, OSError, NotImplementedError):  # not Linux, out of descriptors, no readers
            self._close_handle()
            self._poll = tasks.spawn(self._watch_by_polling(), f"watch process {key.pid}")
        else:
            if not proctree.is_alive(key):
                self._ended()

    def close(self) -> None:
        self._close_handle()
        if self._poll is not None:
            self._poll.cancel()

    def _ended(self) -> None:
        self._close_handle()
        if not self.gone.done():
            self.gone.set_result(None)

    def _close_handle(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            with contextlib.suppress(OSError, NotImplementedError):
                asyncio.get_running_loop().remove_reader(handle)
            os.close(handle)

    async def _watch_by_polling(self) -> None:
        while await asyncio.to_thread(proctree.is_alive, self._key):  # noqa: ASYNC110 - no event to be had
            await asyncio.sleep(_POLL_S)
        self._ended()


async def wait_gone(keys: Collection[ProcessKey], tasks: TaskGroup, timeout_s: float) -> None:
    """Until all of these have ended, or the time is up. Of very many, only some are watched."""
    watches = [ExitWatch(key, tasks) for key in list(keys)[:_MOST_WATCHED]]
    try:
        if watches:
            await asyncio.wait([watch.gone for watch in watches], timeout=max(0.0, timeout_s))
    finally:
        for watch in watches:
            watch.close()


class Tree:
    """Who belongs to one launch. Members once seen stay known, whatever they do to their environment."""

    def __init__(self, marker: str, known: Collection[ProcessKey] = ()) -> None:
        self.marker = marker
        self.known = set(known)

    async def alive(self) -> set[ProcessKey]:
        found, living = await asyncio.to_thread(self.look, frozenset(self.known))
        self.known = found
        return living

    def look(self, known: Collection[ProcessKey]) -> tuple[set[ProcessKey], set[ProcessKey]]:
        """All members, zombies too, and those alive. Blocks."""
        processes = proctree.snapshot()
        found = proctree.members(processes, self.marker, known)
        return found, proctree.alive(processes, found)


class Child:
    """A running slot. `is_ready`, `is_stopping` and `is_asleep` are set by the engine, which alone owns it."""

    def __init__(
        self,
        launch: Launch,
        leader: ProcessKey,
        marker: str,
        engine_log: EngineLog,
        mark: Mark,
        tasks: TaskGroup,
        popen: subprocess.Popen[bytes] | None = None,
    ) -> None:
        self.launch = launch
        self.leader = leader
        self.tree = Tree(marker, {leader})
        self.log = engine_log
        self.mark = mark
        self.started_at = asyncio.get_running_loop().time()
        self.is_ready = False
        self.is_stopping = False
        self.is_asleep = False
        # Who listens at its port, as far as that was seen when it became ready.
        self.listeners: frozenset[int] = frozenset()
        self._popen = popen
        self._oom_kills_before = oom_kills()
        self._watch = ExitWatch(leader, tasks)
        self.exited = self._watch.gone

    @property
    def has_exited(self) -> bool:
        return self.exited.done()

    def exit_status(self) -> int | None:
        """As `subprocess` has it, without reaping; None while it runs and for an adopted one."""
        if self._popen is None:
            return None
        if self._popen.returncode is not None or not hasattr(os, "waitid"):
            return self._popen.poll()
        try:
            end = os.waitid(os.P_PID, self.leader.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return self._popen.poll()
        if end is None:
            return None
        return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status

    def was_killed_for_memory(self) -> bool:
        """Killed outright, and the kernel counted a kill for lack of memory since the launch."""
        return self.exit_status() in (-9, 137) and oom_kills() > self._oom_kills_before

    def close(self) -> None:
        """Let go of it: reaped if it has ended, left alone if it lives."""
        self._watch.close()
        if self._popen is not None and self._popen.poll() is None:
            # It lives on by intent (`on_exit: keep`); Popen would complain when it is collected.
            self._popen.returncode = 0


def spawn(launch: Launch, env: Mapping[str, str], marker: str, engine_log: EngineLog, tasks: TaskGroup) -> Child:
    """Start the process and return at once; not a coroutine, so that nothing is cancelled half way.

    Raises OSError (also for the log file) or ValueError.
    """
    mark = engine_log.mark()
    output = engine_log.open_for_child()
    try:
        popen = popen_detached(launch.argv, env, launch.cwd, output)
    finally:
        os.close(output)
    info = proctree.read_process(popen.pid, with_marker=False)
    leader = info.key if info is not None else ProcessKey(popen.pid, 0)
    return Child(launch, leader, marker, engine_log, mark, tasks, popen)


def popen_detached(
    argv: Sequence[str], env: Mapping[str, str], cwd: Path | None, output: int
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=dict(env),
        cwd=cwd,
        start_new_session=True,
    )


async def run_bounded(
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: Path | None,
    output: int,
    tasks: TaskGroup,
    timeout_s: float,
) -> int | None:
    """Run a short command; its exit status, or None if it took too long and was killed. Raises OSError."""
    popen = popen_detached(argv, env, cwd, output)
    info = proctree.read_process(popen.pid, with_marker=False)
    leader = info.key if info is not None else ProcessKey(popen.pid, 0)
    watch = ExitWatch(leader, tasks)
    try:
        await asyncio.wait([watch.gone], timeout=timeout_s)
        if popen.poll() is not None:
            return popen.returncode
        return None
    finally:
        watch.close()
        if popen.poll() is None:
            proctree.send_to_group(leader, proctree.KILL)
            try:
                popen.wait(0.1)
            except subprocess.TimeoutExpired:
                popen.returncode = -9  # stuck in a driver: it goes when that lets go of it


def oom_kills() -> int:
    """How often the kernel has killed for lack of memory since boot; 0 where it does not say."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    except (OSError, ValueError):
        pass
    return 0
