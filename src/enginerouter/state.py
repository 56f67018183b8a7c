"""The state file: what the router remembers over a restart, and never trusts over what it sees.

One JSON document with named sections: `launches` (processes we started), `learned` (per slot), and others.
Reading is tolerant – a damaged file is an empty one and a warning. Writing is atomic (temporary file, fsync,
rename), in a thread, soon after the last change, or at once with `flush()`. There is one writer: this object.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import hashlib
import json
import logging
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from enginerouter.tasks import TaskGroup

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)


class StateFile:
    """Sections of JSON objects, whose entries keep their order over a restart.

    `get` gives copies; what `put` and `put_entry` change is on disk later.
    """

    def __init__(self, path: Path, *, delay_s: float = 0.5) -> None:
        self.path = Path(os.path.abspath(path))
        # Marks what this router launched: two routers with different state files never touch each other's.
        self.router_id = hashlib.sha256(str(self.path).encode()).hexdigest()[:16]
        self._delay_s = delay_s
        self._sections = read_sections(self.path)
        self._version = 0
        self._written = 0
        self._can_write = True
        self._disk = threading.Lock()
        self._tasks = TaskGroup()
        self._later: asyncio.Task[None] | None = None
        self._lock: int | None = None

    def lock(self) -> None:
        """Claim the file for this process, until it ends. Raises BlockingIOError if another router has it.

        Two routers on one state file would take over, and stop, each other's engines.
        """
        if sys.platform == "win32" or self._lock is not None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            log.warning("the state file %s cannot be locked: %s", self.path, error)
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise
        self._lock = lock

    def get(self, section: str) -> dict[str, Any]:
        return copy.deepcopy(self._sections.get(section, {}))

    def put(self, section: str, value: dict[str, Any]) -> None:
        self._sections[section] = copy.deepcopy(value)
        self._changed()

    def put_entry(self, section: str, key: str, value: Any | None) -> None:
        """Set one entry of a section that several owners share; None removes it."""
        entries = self._sections.setdefault(section, {})
        if value is not None:
            entries[key] = copy.deepcopy(value)
        elif entries.pop(key, None) is None:
            return
        self._changed()

    async def flush(self) -> None:
        """Write what has changed. A disk that refuses is a warning, once."""
        if self._version == self._written:
            return
        text = json.dumps(self._sections, indent=1)
        await asyncio.to_thread(self._write, text, self._version)

    async def close(self) -> None:
        await self._tasks.close()
        await self.flush()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _changed(self) -> None:
        self._version += 1
        if self._later is None or self._later.done():
            # Without a loop (a command line tool) nothing is written before `flush`.
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop()
                self._later = self._tasks.spawn(self._write_later(), f"write {self.path.name}")

    async def _write_later(self) -> None:
        """Write in a while; again if more changed during the write."""
        while self._version != self._written:
            before = self._version
            await asyncio.sleep(self._delay_s)
            await self.flush()
            if not self._can_write and self._version == before:
                return  # the next change tries again

    def _write(self, text: str, version: int) -> None:
        # A cancelled flush leaves its thread running: a later text must not be overwritten by an older one.
        with self._disk:
            if version <= self._written:
                return
            try:
                write_atomically(self.path, text)
            except OSError as error:
                if self._can_write:
                    log.warning("state file %s cannot be written (%s): restarts forget", self.path, error)
                self._can_write = False
                return
            if not self._can_write:
                log.info("state file %s can be written again", self.path)
            self._can_write = True
            self._written = version


def read_sections(path: Path) -> dict[str, dict[str, Any]]:
    """The sections of the file; empty where there is none, or nothing of use in it."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        log.warning("state file %s is not readable (%s); starting without it", path, error)
        return {}
    if not isinstance(document, dict):
        log.warning("state file %s does not hold a JSON object; starting without it", path)
        return {}
    wrong = [name for name, section in document.items() if not isinstance(section, dict)]
    if wrong:
        log.warning("state file %s: ignoring %s, not an object", path, ", ".join(map(repr, wrong)))
    return {name: section for name, section in document.items() if name not in wrong}


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old file or the new one, also after a power cut. Only the owner may read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mkstemp gives 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if hasattr(os, "O_DIRECTORY"):  # the rename itself is on disk only once the folder is
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
