"""Where the router's own log goes: standard error, and a rotating file.

A line per request is a fifth of what a small request costs when each is formatted and written by itself (measured:
48 of 250 µs). So lines are collected, formatted and written together, a few times a second; warnings at once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO, cast

from enginerouter.config.model import Config

MAX_BYTES = 5_000_000
BACKUPS = 3
FLUSH_EVERY_S = 0.25
MAX_COLLECTED = 1000
TAIL_BYTES = 1 << 20
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class TextFormatter(logging.Formatter):
    """Plain lines. The text of a second is worked out once for all lines of that second."""

    def __init__(self) -> None:
        super().__init__(TEXT)
        self._second = -1
        self._text = ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        second = int(record.created)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        return f"{self._text},{record.msecs:03.0f}"


class JsonFormatter(TextFormatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class PrivateFile(RotatingFileHandler):
    """For the owner's eyes: lines name models, keys' names and what engines said."""

    def _open(self) -> TextIOWrapper:
        def private(path: str, flags: int) -> int:
            return os.open(path, flags, 0o600)

        return cast(TextIOWrapper, open(self.baseFilename, self.mode, encoding=self.encoding, opener=private))


class CollectingHandler(logging.Handler):
    """Collects records and writes them in one piece to standard error and a file. Somebody calls `flush` regularly."""

    def __init__(self, formatter: logging.Formatter, stderr: TextIO, file: RotatingFileHandler | None) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._stderr = stderr
        self._file = file
        self._records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)
        if record.levelno >= logging.WARNING or len(self._records) >= MAX_COLLECTED:
            self.flush()

    def flush(self) -> None:
        with self.lock or contextlib.nullcontext():
            records, self._records = self._records, []
            if records:
                text = "".join(self._lines(records))
                # A terminal or a disk that is gone must not take the router with it.
                with contextlib.suppress(OSError, ValueError):
                    self._stderr.write(text)
                    self._stderr.flush()
                with contextlib.suppress(OSError, ValueError):
                    self._write_file(text)

    def _lines(self, records: Sequence[logging.LogRecord]) -> list[str]:
        return [self.format(record) + "\n" for record in records]

    def _write_file(self, text: str) -> None:
        if self._file is not None and self._file.stream is not None:
            self._file.stream.write(text)
            self._file.stream.flush()
            if self._file.stream.tell() >= MAX_BYTES:
                self._file.doRollover()


# What every record has, for handlers of any kind.
_BLANK = logging.makeLogRecord({"levelno": logging.INFO, "levelname": "INFO", "name": "enginerouter.requests"}).__dict__


class RequestLine(logging.LogRecord):
    """The record of one request, made without looking up what no format of ours shows (thread, process, caller)."""

    def __init__(self, message: str, *args: object) -> None:
        now = time.time()
        self.__dict__.update(_BLANK, msg=message, args=args, created=now, msecs=now % 1 * 1000)


def change_logging(before: Config, after: Config) -> None:
    """Level and form of the log, where a reload has changed them; its file needs a restart."""
    root = logging.getLogger()
    if after.log_level != before.log_level:
        root.setLevel(after.log_level)
    if after.log_format != before.log_format:
        for handler in root.handlers:
            if isinstance(handler, CollectingHandler):
                handler.flush()
                handler.setFormatter(_formatter(after.log_format))


def _formatter(form: str) -> logging.Formatter:
    return JsonFormatter() if form == "json" else TextFormatter()


def set_up(level: str, file: Path | None, form: str) -> CollectingHandler:
    """Send the root log to standard error and to `file`; the handler must be flushed now and then.

    A file that cannot be opened is one warning: serving matters more than the log.
    """
    root = logging.getLogger()
    root.setLevel(level)
    output: RotatingFileHandler | None = None
    problem: OSError | None = None
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            output = PrivateFile(file, backupCount=BACKUPS, encoding="utf-8")
        except OSError as error:
            problem = error
    handler = CollectingHandler(_formatter(form), sys.stderr, output)
    root.addHandler(handler)
    if problem is not None:
        logging.getLogger(__name__).warning("no log file: %s", problem)
    return handler


class LogTail:
    """The end of a log file as it grows, also over rotation by renaming and by truncating. Blocks: for a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = 0
        self._offset = 0

    def last(self, lines: int) -> bytes:
        """The last lines, of at most the last MiB; nothing where there is no file yet."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - TAIL_BYTES))
                found = file.read()
                self._inode, self._offset = os.fstat(file.fileno()).st_ino, file.tell()
        except FileNotFoundError:
            return b""
        return b"".join(found.splitlines(keepends=True)[-lines:]) if lines else b""

    def more(self) -> bytes:
        """What was added since; a file that was exchanged or truncated is read from its beginning."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._inode or found.st_size < self._offset:
                    self._inode, self._offset = found.st_ino, 0
                file.seek(self._offset)
                added = file.read(TAIL_BYTES)
                self._offset = file.tell()
        except FileNotFoundError:
            return b""
        return added


class Followed:
    """The log of an engine as it grows: one file, or one for each of its profiles. Blocks: for a thread."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._tails = {path: LogTail(path) for path in files}
        self._current: Path | None = None

    def last(self, lines: int) -> bytes:
        """The last lines of the file that was written last."""
        self._current = max(self._tails, key=_written_at)
        ends = {path: tail.last(lines if path == self._current else 0) for path, tail in self._tails.items()}
        return ends[self._current]

    def more(self) -> bytes:
        """What was added since, to any of them; another file than before is named, as `tail -f` does."""
        added = []
        for path, tail in self._tails.items():
            if text := tail.more():
                if path != self._current:
                    self._current = path
                    added.append(f"==> {path.name} <==\n".encode())
                added.append(text)
        return b"".join(added)


def _written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
