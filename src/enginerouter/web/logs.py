"""Where the router's own log goes: standard error, and a rotating file."""

from __future__ import annotations

import json
import logging
import sys
from logging.handlers import MemoryHandler, RotatingFileHandler
from pathlib import Path

MAX_BYTES = 5_000_000
BACKUPS = 3
# Request lines are collected and written together; a line waits at most this long, warnings not at all.
FLUSH_EVERY_S = 0.25
COLLECTED = 256
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
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


def set_up(level: str, file: Path | None, form: str) -> list[MemoryHandler]:
    """Send the root log to standard error and to `file`; give the handlers whose `flush` must be called now and then.

    A file that cannot be opened is one warning: serving matters more than the log.
    """
    root = logging.getLogger()
    root.setLevel(level)
    formatter = JsonFormatter() if form == "json" else logging.Formatter(TEXT)
    outputs: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    problem: OSError | None = None
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            outputs.append(RotatingFileHandler(file, maxBytes=MAX_BYTES, backupCount=BACKUPS, encoding="utf-8"))
        except OSError as error:
            problem = error
    collecting = []
    for output in outputs:
        output.setFormatter(formatter)
        handler = MemoryHandler(COLLECTED, flushLevel=logging.WARNING, target=output)
        root.addHandler(handler)
        collecting.append(handler)
    if problem is not None:
        logging.getLogger(__name__).warning("no log file: %s", problem)
    return collecting
