"""What the header of a GGUF file says of its model: a small reader of its metadata, for catalogues.

A file is somebody else's bytes: every length is checked against what is allowed and what is there, nothing is read
beyond `MOST_BYTES`, and a file that is broken, half written or something else altogether gives None. No map of the
file into memory: one that is cut short meanwhile would end the process. Call it in a thread.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

# The vocabulary of the largest models takes about 12 MiB; what lies behind this is not worth a wait.
MOST_BYTES = 32 << 20
MOST_KEYS = 4096
MOST_TENSORS = 65536
# Chat templates are the longest texts that anybody asks for.
LONGEST_TEXT = 256 << 10
LONGEST_KEY = 1024
MOST_DIMENSIONS = 8
DEEPEST_ARRAY = 4
_PIECE = 1 << 20

_STRING, _ARRAY = 8, 9
_FORMATS = MappingProxyType({0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"})
Value = int | float | bool | str


@dataclass(frozen=True, slots=True)
class Header:
    """The scalars of the metadata. `parameter_count` is the count of numbers in all tensors of this file."""

    values: Mapping[str, Value]
    parameter_count: int

    def text(self, key: str) -> str:
        found = self.values.get(key)
        return found if isinstance(found, str) else ""

    def count(self, key: str) -> int | None:
        """A number above 0, or None."""
        found = self.values.get(key)
        return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else None


class _Broken(Exception):
    """These bytes are no header of a GGUF file."""


def read_header(path: Path) -> Header | None:
    """The header of a file, or None: there is no such file, or it is no GGUF file, or not a whole one."""
    try:
        with path.open("rb") as file:
            return _header(_Cursor(file))
    except (OSError, ValueError, _Broken):
        return None


class _Cursor:
    """A place in the file, with a buffer. Lengths are trusted by nobody: what does not fit raises _Broken."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._data = b""
        self._at = 0
        self._left = MOST_BYTES

    def take(self, size: int) -> bytes:
        self._fill(size)
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, code: str) -> int | float | bool:
        form = "<" + code
        found: int | float | bool = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return found

    def length(self, most: int) -> int:
        """A count of 64 bits."""
        found = int(self.number("Q"))
        if found > most:
            raise _Broken
        return found

    def text(self, most: int) -> str:
        return self.take(self.length(most)).decode("utf-8", "replace")

    def skip(self, size: int) -> None:
        """Go past bytes that nobody asks for, a piece at a time."""
        if size > self._left + len(self._data) - self._at:
            raise _Broken
        while size:
            piece = min(size, _PIECE)
            self._fill(piece)
            self._at += piece
            size -= piece

    def skip_texts(self, count: int) -> None:
        """Go past texts: a vocabulary has a quarter of a million. Each takes 8 bytes at least, so the loop ends."""
        read = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if len(self._data) - self._at < 8:
                self._fill(8)
            length = read(self._data, self._at)[0]
            if len(self._data) - self._at - 8 >= length:
                self._at += 8 + length
            else:
                self.skip(8)
                self.skip(length)

    def _fill(self, size: int) -> None:
        if len(self._data) - self._at >= size:
            return
        kept = self._data[self._at :]
        wanted = max(size - len(kept), min(_PIECE, self._left))
        if wanted > self._left:
            raise _Broken
        more = self._file.read(wanted)
        self._left -= len(more)
        self._data, self._at = kept + more, 0
        if len(self._data) < size:
            raise _Broken


def _header(cursor: _Cursor) -> Header:
    if cursor.take(4) != b"GGUF":
        raise _Broken
    if cursor.number("I") not in (2, 3):
        raise _Broken
    tensors, keys = cursor.length(MOST_TENSORS), cursor.length(MOST_KEYS)
    values: dict[str, Value] = {}
    for _ in range(keys):
        key = cursor.text(LONGEST_KEY)
        value = _value(cursor, int(cursor.number("I")))
        if value is not None:
            values[key] = value
    return Header(values, sum(_tensor_size(cursor) for _ in range(tensors)))


def _value(cursor: _Cursor, kind: int) -> Value | None:
    """A scalar; None for what is gone past: arrays, and texts that are too long."""
    if kind == _STRING:
        length = cursor.length(MOST_BYTES)
        if length > LONGEST_TEXT:
            cursor.skip(length)
            return None
        return cursor.take(length).decode("utf-8", "replace")
    if kind == _ARRAY:
        _skip_array(cursor, DEEPEST_ARRAY)
        return None
    return cursor.number(_format(kind))


def _skip_array(cursor: _Cursor, depth: int) -> None:
    if depth == 0:
        raise _Broken
    kind, count = int(cursor.number("I")), cursor.length(MOST_BYTES)
    if kind == _STRING:
        cursor.skip_texts(count)
    elif kind == _ARRAY:
        for _ in range(count):
            _skip_array(cursor, depth - 1)
    else:
        cursor.skip(count * struct.calcsize(_format(kind)))


def _format(kind: int) -> str:
    if kind not in _FORMATS:
        raise _Broken
    return _FORMATS[kind]


def _tensor_size(cursor: _Cursor) -> int:
    """The count of numbers in one tensor: its name, its dimensions, its type and where it begins."""
    cursor.skip(cursor.length(LONGEST_KEY))
    dimensions = int(cursor.number("I"))
    if dimensions > MOST_DIMENSIONS:
        raise _Broken
    size = 1
    for _ in range(dimensions):
        size *= int(cursor.number("Q"))
    cursor.skip(4 + 8)
    return size
