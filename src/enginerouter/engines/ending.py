"""Ending a process tree: ask, wait, kill, look again until nothing is left.

Asking is the stop command, else the stop signal to the leader's group. Those that outlive their leader are asked
one by one, for they may never have been in its group. What remains after that is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Collection

from enginerouter.engines import ports, proctree
from enginerouter.engines.base import Ended
from enginerouter.engines.child import Child, Tree, run_bounded, wait_gone
from enginerouter.engines.launch import CONTAINER_PORT_TIMEOUT_S, KILL_TIMEOUT_S, Launch, child_environment
from enginerouter.engines.launch_facts import is_llamacpp
from enginerouter.engines.proctree import ProcessKey
from enginerouter.errors import FreeFailed
from enginerouter.slots import SlotId
from enginerouter.tasks import TaskGroup

log = logging.getLogger(__name__)

# Once their leader is gone nobody gives the others work: they are given this long to tidy up.
_ORPHAN_GRACE_S = 5.0
_RESCAN_S = 0.25
# llama-server's handler of a signal takes a lock that the very thread it interrupts may hold, when a request has just
# been cancelled: then it hangs (seen in 1 of 25 such stops on a busy machine) until a second signal ends it at once.
ASK_LLAMACPP_AGAIN_S = 2.0
_CONT = getattr(signal, "SIGCONT", None)


def signal_number(name: str) -> int:
    """`TERM`, `SIGTERM` or `15`; SIGTERM where this system has no such signal."""
    if name.isdigit():
        return int(name)
    found = getattr(signal, f"SIG{name.upper().removeprefix('SIG')}", signal.SIGTERM)
    return int(found)


async def end_wholly(child: Child, stop_signal: str, stop_timeout_s: float, tasks: TaskGroup) -> None:
    """`end_child`, and a container with it. Raises FreeFailed if anything is left."""
    left = await end_child(child, stop_signal, stop_timeout_s, tasks)
    if left:
        raise would_not_go(child.launch.slot, left)
    await _see_container_gone(child.launch)


async def end_child(child: Child, stop_signal: str, stop_timeout_s: float, tasks: TaskGroup) -> set[ProcessKey]:
    """End the child and its whole tree. What comes back would not go."""
    deadline = asyncio.get_running_loop().time() + stop_timeout_s
    number = signal_number(stop_signal)
    was_asked = False
    # A container may live on without the client that we launched.
    if child.launch.stop_argv and (child.launch.is_container or not child.has_exited):
        was_asked = await _run_stop_command(child, stop_timeout_s, tasks)
    if not was_asked:
        await asyncio.to_thread(_ask_group, child.leader, number)
        if is_llamacpp(child.launch.argv) and not await _exited(child, min(ASK_LLAMACPP_AGAIN_S, _left(deadline))):
            await asyncio.to_thread(_ask_group, child.leader, number)
    await _exited(child, _left(deadline))
    return await end_tree(child.tree, number, min(_left(deadline), _ORPHAN_GRACE_S), tasks)


async def _exited(child: Child, timeout_s: float) -> bool:
    if not child.has_exited:
        await asyncio.wait([child.exited], timeout=timeout_s)
    return child.has_exited


async def end_tree(tree: Tree, number: int, grace_s: float, tasks: TaskGroup) -> set[ProcessKey]:
    """Ask every member that is left, then kill until two looks in a row find none."""
    left = await tree.alive()
    empty_looks = 0 if left else 1
    if left and grace_s > 0:
        await asyncio.to_thread(_ask_each, left, number)
        await wait_gone(left, tasks, grace_s)
    deadline = asyncio.get_running_loop().time() + KILL_TIMEOUT_S
    while empty_looks < 2:
        left = await tree.alive()
        if not left:
            # A member may have forked while we looked, and ended: its child shows at the second look.
            empty_looks += 1
            continue
        if _left(deadline) == 0:
            return left
        empty_looks = 0
        await asyncio.to_thread(proctree.kill_all, left)
        await wait_gone(left, tasks, _RESCAN_S)
    return set()


async def ended_of(slot: SlotId, tree: Tree, *, is_container: bool) -> Ended:
    """What is about to be ended. Of a container only the client is in the tree, and not its memory."""
    keys = await tree.alive()
    held = None if is_container else await asyncio.to_thread(proctree.held_bytes, keys)
    return Ended(slot, held, frozenset(key.pid for key in keys))


def would_not_go(slot: SlotId, left: Collection[ProcessKey]) -> FreeFailed:
    pids = ", ".join(str(key.pid) for key in sorted(left))
    return FreeFailed(
        slot.engine,
        f"engine {str(slot)!r} would not stop: process {pids} is still there after being killed; "
        "it may be stuck in a driver – look at the kernel log",
    )


async def _see_container_gone(launch: Launch) -> None:
    """The tree is gone. A port still open is somebody else's by now – but a container may live on."""
    if not launch.is_container:
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CONTAINER_PORT_TIMEOUT_S):
            while await asyncio.to_thread(ports.holder_of, launch.host, launch.port):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            return
    engine = launch.slot.engine
    raise FreeFailed(
        engine,
        f"engine {engine!r}: its command has ended, but port {launch.port} is still open; "
        "the container may be running on: correct `stop_cmd`, and stop the container by hand",
    )


def _left(deadline: float) -> float:
    return max(0.0, deadline - asyncio.get_running_loop().time())


def _ask_group(leader: ProcessKey, number: int) -> None:
    """A stopped process takes its signal only once it continues."""
    proctree.send_to_group(leader, number)
    if _CONT is not None:
        proctree.send_to_group(leader, _CONT)


def _ask_each(keys: set[ProcessKey], number: int) -> None:
    for key in keys:
        proctree.send(key, number)
        if _CONT is not None:
            proctree.send(key, _CONT)


async def _run_stop_command(child: Child, timeout_s: float, tasks: TaskGroup) -> bool:
    """True if it ended well: then the engine is on its way out and needs no signal."""
    launch = child.launch
    engine = launch.slot.engine
    # Without the marker: the command is no part of the tree that it ends.
    env = child_environment(os.environ, launch, None)
    try:
        output = child.log.open_for_child()
        try:
            status = await run_bounded(launch.stop_argv, env, launch.cwd, output, tasks, timeout_s)
        finally:
            os.close(output)
    except (OSError, ValueError) as error:
        log.warning("engine %r: its stop_cmd could not be run: %s", engine, error)
        return False
    if status is None:
        log.warning("engine %r: its stop_cmd did not end within %.3g s", engine, timeout_s)
    elif status != 0:
        log.warning("engine %r: its stop_cmd exited with status %d", engine, status)
    return status == 0
