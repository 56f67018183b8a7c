"""Putting a configuration on disk: never over another one unasked, whole or not at all, for its owner's eyes."""

from __future__ import annotations

import sys
from pathlib import Path

from enginerouter.state import write_atomically


class NotWritten(Exception):
    """Its text says why, and what to do."""


def can_ask(*, assume_yes: bool) -> bool:
    """Whether there is somebody at a terminal to answer."""
    return not assume_yes and sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: str, default: str) -> str:
    """The answer, or the default for an empty one. On standard error: standard output may be a file."""
    print(f"{question} [{default}] ", end="", file=sys.stderr, flush=True)
    try:
        answer = input().strip()
    except EOFError:
        print(file=sys.stderr)
        return default
    return answer or default


def agrees(question: str) -> bool:
    """Whether the answer is a yes; none is a no."""
    return ask(question, "y/N").lower() in ("y", "yes")


def may_write(path: Path, *, force: bool, can_be_asked: bool) -> None:
    """Raises NotWritten if something is there that is not to be overwritten."""
    if force or not (path.exists() or path.is_symlink()):
        return
    if can_be_asked and agrees(f"{path} is there already. Overwrite it?"):
        return
    raise NotWritten(f"{path} is there already; give --force to overwrite it, or name another file")


def write(path: Path, text: str) -> None:
    """Raises NotWritten."""
    try:
        # A symbolic link keeps pointing: what it points to is replaced.
        write_atomically(path.resolve() if path.is_symlink() else path, text)
    except OSError as error:
        raise NotWritten(f"{path} cannot be written: {error.strerror or error}") from error
