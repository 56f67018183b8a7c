"""A request body that can be sent more than once: every try reads the file from its start, for itself."""

from __future__ import annotations

import io
import os
from typing import IO


class _View(io.RawIOBase):
    """The whole of a file, with a place of its own. Tries that overlap (an upload that is being given up is still
    read in a thread) do not move each other's."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = os.dup(descriptor)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: os.fstat(self._descriptor).st_size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = os.pread(self._descriptor, len(buffer), self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def for_one_try(body: bytes | IO[bytes]) -> bytes | IO[bytes]:
    """What to hand to one try, which closes it."""
    return body if isinstance(body, bytes) else io.BufferedReader(_View(body.fileno()))
