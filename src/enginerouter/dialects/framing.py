"""From the bytes of a stream to its events, however the bytes are cut: Server-Sent Events and lines of JSON.

Lines are found in bytes and decoded when they are whole, so half a UTF-8 character never meets a decoder, and U+2028
or U+0085, which are legal inside a JSON string, end no line. An event larger than `limit_bytes` raises FrameTooLarge:
an engine that never ends a line must not fill the memory.

SSE is read as the WHATWG specification says (CR, LF or CRLF; a byte order mark; comments; several `data:` lines), with
one difference: what is there when the stream ends counts as an event, because engines leave the last blank line out.
"""

from __future__ import annotations

LIMIT_BYTES = 16 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"


class FrameTooLarge(ValueError):
    """An event or line of a stream is larger than the buffer it would need."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"an event of the stream is larger than {limit_bytes} bytes")
        self.limit_bytes = limit_bytes


class Lines:
    """Whole lines, without their ends, out of pieces of a stream. CR, LF and CRLF end a line."""

    __slots__ = ("_at_start", "_held_bytes", "_limit", "_pieces", "_skips_lf")

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        self._pieces: list[bytes] = []
        self._held_bytes = 0
        # The last piece ended with CR: an LF that comes first now belongs to it.
        self._skips_lf = False
        self._at_start = True

    def feed(self, piece: bytes) -> list[bytes]:
        """The lines that this piece ends. Raises FrameTooLarge."""
        if self._skips_lf and piece:
            self._skips_lf = False
            piece = piece.removeprefix(b"\n")
        if b"\r" in piece:
            self._skips_lf = piece.endswith(b"\r")
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if b"\n" not in piece:
            self._hold(piece)
            return []
        if self._pieces:
            self._pieces.append(piece)
            piece = b"".join(self._pieces)
            self._pieces.clear()
            self._held_bytes = 0
        lines = piece.split(b"\n")
        if rest := lines.pop():
            self._hold(rest)
        return self._without_mark(lines) if self._at_start else lines

    def end(self) -> bytes:
        """What is left without an end; b"" if nothing is."""
        rest = b"".join(self._pieces)
        self._pieces.clear()
        self._held_bytes = 0
        return self._without_mark([rest])[0] if self._at_start else rest

    def _hold(self, piece: bytes) -> None:
        if not piece:
            return
        self._held_bytes += len(piece)
        if self._held_bytes > self._limit:
            raise FrameTooLarge(self._limit)
        self._pieces.append(piece)

    def _without_mark(self, lines: list[bytes]) -> list[bytes]:
        self._at_start = False
        lines[0] = lines[0].removeprefix(_BOM)
        return lines


class EventSplitter:
    """SSE: pieces of a stream in, `(event name, data)` out; the name is "" where the event has none."""

    __slots__ = ("_data", "_data_bytes", "_limit", "_lines", "_name")

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._lines = Lines(limit_bytes)
        self._limit = limit_bytes
        self._name = b""
        self._data: list[bytes] = []
        self._data_bytes = 0

    def feed(self, piece: bytes) -> list[tuple[str, bytes]]:
        """The events that this piece ends. Raises FrameTooLarge."""
        return self._events(self._lines.feed(piece))

    def end(self) -> list[tuple[str, bytes]]:
        """The stream has ended: an event without its blank line."""
        rest = self._lines.end()
        return self._events([rest, b""] if rest else [b""])

    def _events(self, lines: list[bytes]) -> list[tuple[str, bytes]]:
        events = []
        for line in lines:
            if line.startswith(b"data:"):
                self._add(line[6:] if line.startswith(b"data: ") else line[5:])
            elif not line:
                if self._data:
                    data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
                    events.append((self._name.decode("utf-8", "replace") if self._name else "", data))
                    self._data.clear()
                    self._data_bytes = 0
                self._name = b""
            elif line.startswith(b"event:"):
                self._name = line[6:].removeprefix(b" ")
            elif line == b"data":
                self._add(b"")
            # Comments, `id:`, `retry:` and unknown fields say nothing to us.
        return events

    def _add(self, data: bytes) -> None:
        self._data_bytes += len(data) + 1
        if self._data_bytes > self._limit:
            raise FrameTooLarge(self._limit)
        self._data.append(data)


class LineSplitter:
    """NDJSON: pieces of a stream in, lines out; blank lines and white space around a line are dropped."""

    __slots__ = ("_lines",)

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._lines = Lines(limit_bytes)

    def feed(self, piece: bytes) -> list[bytes]:
        """The lines that this piece ends. Raises FrameTooLarge."""
        return [kept for line in self._lines.feed(piece) if (kept := line.strip())]

    def end(self) -> list[bytes]:
        """The stream has ended: a last line without its end."""
        rest = self._lines.end().strip()
        return [rest] if rest else []
