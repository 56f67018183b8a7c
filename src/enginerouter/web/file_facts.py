"""What model files say of themselves, read in a thread and kept until a file changes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from enginerouter.engines.gguf import read_header
from enginerouter.engines.launch_facts import facts_in_gguf
from enginerouter.engines.model_facts import ModelFacts

# How long a catalogue waits for a disk; what is not read by then is in the next one.
PATIENCE_S = 1.0
_FIRST_PART = re.compile(r"-00001-of-(\d{5})\.gguf$", re.IGNORECASE)
_MOST_PARTS = 1000


@dataclass(frozen=True, slots=True)
class _Read:
    """What a file said when it had this change time and size; None: it is no model's."""

    stamp: tuple[int, int]
    facts: ModelFacts | None


class FileFacts:
    """`of` gives what is known; `freshen` looks whether the files have changed."""

    def __init__(self) -> None:
        self._read: dict[Path, _Read] = {}
        self._reading: asyncio.Future[dict[Path, _Read]] | None = None

    def of(self, path: Path) -> ModelFacts | None:
        read = self._read.get(path)
        return read.facts if read is not None else None

    async def freshen(self, paths: Collection[Path]) -> None:
        """Read what has changed, one thread at a time. What takes too long goes on without us."""
        if not paths:
            return
        if self._reading is None:
            loop = asyncio.get_running_loop()
            self._reading = loop.run_in_executor(None, _look, tuple(paths), dict(self._read))
            self._reading.add_done_callback(self._done)
        await asyncio.wait([self._reading], timeout=PATIENCE_S)

    def _done(self, reading: asyncio.Future[dict[Path, _Read]]) -> None:
        self._reading = None
        if not reading.cancelled():
            self._read = reading.result()


def _look(paths: Collection[Path], before: dict[Path, _Read]) -> dict[Path, _Read]:
    """In a thread."""
    found: dict[Path, _Read] = {}
    for path in paths:
        try:
            stat = path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size)
            known = before.get(path)
            is_known = known is not None and known.stamp == stamp
            found[path] = known if known is not None and is_known else _Read(stamp, _facts(path, stat.st_mtime))
        except (OSError, ValueError):
            continue
    return found


def _facts(path: Path, modified_utc: float) -> ModelFacts | None:
    header = read_header(path) if path.is_file() else None
    return facts_in_gguf(header, _size(path), modified_utc) if header is not None else None


def _size(path: Path) -> int:
    """Of a model in parts, all of them."""
    part = _FIRST_PART.search(path.name)
    parts = [path]
    if part is not None:
        stem, count = path.name[: part.start()], part[1]
        last = min(int(count), _MOST_PARTS)
        parts = [path.with_name(f"{stem}-{n:05d}-of-{count}.gguf") for n in range(1, last + 1)]
    return sum(p.stat().st_size for p in parts if p.exists())
