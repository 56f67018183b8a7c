"""The log of one engine: a plain file that the engine itself writes to.

Never a pipe: its reader may die, and then the engine blocks or is killed. The child appends to the file; the router
only looks at its end, and rotates it by copying the end away and truncating, since the child keeps its descriptor.
Methods that touch the file run in threads, except `open_for_child`, which is quick.
"""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import dataclass
from pathlib import Path

ROTATE_ABOVE_BYTES = 5 * 1024 * 1024
KEPT_FILES = 3
_TAIL_BYTES = 256 * 1024
_CAME_MEANWHILE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the log. `turn` counts rotations: after one, everything in the file is newer than the mark."""

    offset: int
    turn: int = 0


class EngineLog:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._turn = 0
        self._rotating = threading.Lock()

    def open_for_child(self) -> int:
        """A descriptor to append to, which only a child that is given it inherits. Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        return os.open(self.path, flags, 0o600)

    def mark(self) -> Mark:
        """Where the log ends now; taken before a launch."""
        try:
            return Mark(self.path.stat().st_size, self._turn)
        except OSError:
            return Mark(0, self._turn)

    async def tail(self, lines: int, since: Mark | None = None) -> list[str]:
        """The last lines, none from before the mark."""
        return await asyncio.to_thread(self.read_tail, lines, since)

    def read_tail(self, lines: int, since: Mark | None = None) -> list[str]:
        start = since.offset if since is not None and since.turn == self._turn else 0
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                if start > size:  # truncated by somebody else
                    start = 0
                begin = max(start, size - _TAIL_BYTES)
                file.seek(begin)
                text = file.read(_TAIL_BYTES).decode("utf-8", errors="replace")
        except OSError:
            return []
        found = text.splitlines()
        if begin > start and len(found) > 1:
            found = found[1:]  # the first one is cut
        if begin == 0 and len(found) < lines and self._turn > (since.turn if since else 0):
            found = EngineLog(self._numbered(1)).read_tail(lines - len(found)) + found  # rotated just now
        return found[-lines:] if lines > 0 else []

    async def rotate_if_large(self) -> bool:
        """Called now and then. What the engine writes between copy and truncation is lost: a line at most."""
        return await asyncio.to_thread(self._rotate)

    def _rotate(self) -> bool:
        with self._rotating:
            try:
                size = self.path.stat().st_size
                if size <= ROTATE_ABOVE_BYTES:
                    return False
                for number in range(KEPT_FILES - 1, 0, -1):
                    older = self._numbered(number)
                    if older.exists():
                        os.replace(older, self._numbered(number + 1))
                self._copy_end(size)
                os.truncate(self.path, 0)
            except OSError:
                return False
            self._turn += 1
            return True

    def _copy_end(self, size: int) -> None:
        """Keep the last 5 MB: an engine that prints 100 MB at once shall not fill the disk three times."""
        target = os.open(self._numbered(1), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with self.path.open("rb") as source, os.fdopen(target, "wb") as copy:
            source.seek(max(0, size - ROTATE_ABOVE_BYTES))
            copy.write(source.read(min(size, ROTATE_ABOVE_BYTES)))
            # What came meanwhile – not all of it from an engine that writes faster than we copy.
            copy.write(source.read(_CAME_MEANWHILE_BYTES))

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")
