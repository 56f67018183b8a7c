"""Reading the configuration again while the router runs: SIGHUP and POST /admin/reload.

The file is read and checked off the loop. Anything wrong leaves the running configuration as it is, and is said: in the
log, in the answer, in `/status`. One reload runs at a time; all that are asked for meanwhile become the next one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from enginerouter.config.changes import Changes
from enginerouter.config.load import Loaded
from enginerouter.config.source import NotAFile, see_file
from enginerouter.errors import BadRequest, ConfigError, Problem, ShuttingDown
from enginerouter.tasks import TaskGroup
from enginerouter.web.catalog import json_answer
from enginerouter.web.edge import EdgeCall
from enginerouter.web.machine import load_here
from enginerouter.web.shapes.control import Reloaded, Told

log = logging.getLogger(__name__)

# Applies a configuration that has passed all checks. Raises ConfigError and changes nothing if it cannot be used here.
Apply = Callable[[Loaded], Awaitable[Changes]]


class NotReloaded(BadRequest):
    """The configuration that was read is not used; the running one goes on."""

    status = 422
    code = "configuration_refused"
    is_retryable = False

    def __init__(self, message: str, problems: Sequence[Problem]) -> None:
        super().__init__(message)
        self.problems = tuple(problems)

    def more_fields(self) -> dict[str, Any]:
        return {"problems": [_told(problem) for problem in self.problems]}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a reload went. `at` is the clock on the wall; `problems` are why nothing was changed."""

    at: float
    changes: Changes = field(default_factory=Changes)
    warnings: tuple[Problem, ...] = ()
    problems: tuple[Problem, ...] = ()

    def told(self) -> Reloaded:
        return {
            "at": round(self.at, 3),
            "reloaded": not self.problems,
            "changes": {k: v for k, v in dataclasses.asdict(self.changes).items() if v and k != "restart"},
            "needs_restart": list(self.changes.restart),
            "warnings": [_told(warning) for warning in self.warnings],
            "problems": [_told(problem) for problem in self.problems],
        }


class Reloader:
    """`path` None: the configuration came from no file. `began` and `ended` are called around every reload."""

    def __init__(self, path: Path | None, apply: Apply) -> None:
        self._path = path
        self._apply = apply
        self._tasks = TaskGroup()
        self._is_closed = False
        self._turn = asyncio.Lock()
        # The reload that has not begun yet: whoever asks joins it.
        self._next: asyncio.Task[Outcome] | None = None
        self.last: Outcome | None = None
        self.began: Callable[[], None] = lambda: None
        self.ended: Callable[[], None] = lambda: None

    def request(self) -> None:
        """Reload soon; how it goes is in the log."""
        if not self._is_closed:
            self._join()

    async def reload(self) -> Outcome:
        """Reload, and say how that went. Goes on if the caller leaves. Raises ShuttingDown."""
        if not self._is_closed:
            task = self._join()
            await asyncio.wait({task})
            if not task.cancelled():
                return task.result()
        raise ShuttingDown("the router is shutting down", retry_after_s=5)

    async def close(self) -> None:
        """From now on everything stays as it is."""
        self._is_closed = True
        await self._tasks.close()

    def _join(self) -> asyncio.Task[Outcome]:
        if self._next is None:
            self._next = self._tasks.spawn(self._in_turn(), "reload the configuration")
        return self._next

    async def _in_turn(self) -> Outcome:
        async with self._turn:
            self._next = None
            self.began()
            try:
                self.last = await self._reload()
            finally:
                self.ended()
            return self.last

    async def _reload(self) -> Outcome:
        at = time.time()
        try:
            if self._path is None:
                raise ConfigError([Problem("the running configuration did not come from a file")])
            loaded = await asyncio.to_thread(_load_again, self._path)
            changes = await self._apply(loaded)
        except ConfigError as error:
            log.error("the configuration was not reloaded, the running one goes on: %s", _count(error.problems))
            for problem in error.problems:
                log.error("  %s", problem)
            return Outcome(at, warnings=error.warnings, problems=tuple(error.problems))
        for warning in loaded.warnings:
            log.warning("%s", warning)
        log.info("the configuration was reloaded: %s", describe(changes))
        if changes.restart:
            log.warning("restart the router for these to count: %s", ", ".join(changes.restart))
        return Outcome(at, changes, loaded.warnings)

    # --- for people and programs

    async def asked(self, call: EdgeCall) -> web.StreamResponse:
        """Read the configuration again, apply what changed: 200 with what it was, 422 with all that is wrong."""
        outcome = await self.reload()
        if outcome.problems:
            what = f"{_count(outcome.problems)}, the first: {outcome.problems[0]}"
            raise NotReloaded(f"the configuration was not reloaded, the running one goes on: {what}", outcome.problems)
        return json_answer(outcome.told())

    def status(self, *, is_admin: bool) -> Reloaded | None:
        """The last reload; None if there was none. What is wrong with the file is for admins."""
        if self.last is None:
            return None
        return self.last.told() if is_admin else {"at": round(self.last.at, 3), "reloaded": not self.last.problems}


def _load_again(path: Path) -> Loaded:
    """Raises ConfigError, also for a pipe, which a start may read."""
    try:
        see_file(path)
    except NotAFile as error:
        problem = f"cannot be read again: {error.strerror}"
        raise ConfigError([Problem(problem, file=str(path), hint="put the configuration into a file")]) from error
    except OSError:
        pass  # loading says what is wrong
    return load_here(path)


def describe(changes: Changes) -> str:
    """One line for the log."""
    said = {
        "new": changes.added,
        "gone": (*changes.removed, *map("/".join, changes.removed_profiles)),
        "changed": (*changes.changed, *changes.moved, *map("/".join, changes.changed_profiles)),
        "other keys": changes.live,
    }
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in said.items() if names) or "nothing has changed"


def _count(problems: Sequence[Problem]) -> str:
    return f"{len(problems)} problem{'s' * (len(problems) > 1)}"


def _told(problem: Problem) -> Told:
    return {
        "message": problem.message,
        "path": problem.path,
        "file": problem.file,
        "line": problem.line,
        "hint": problem.hint,
        "text": str(problem),
    }
