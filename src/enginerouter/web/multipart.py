"""One text field of a multipart/form-data body, found without loading its files (RFC 7578, RFC 2046 §5.1).

The parts are only walked: what is kept in memory is one part's headers and the field itself. Pure over a `Source`
of bytes, so that a body in memory and one in a temporary file are read by the same code. Whatever two readers could
see differently (a name given twice, a broken header) is refused, as in `json_body`.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from typing import IO, TYPE_CHECKING, Protocol

from enginerouter.errors import BadRequest

if TYPE_CHECKING:
    from enginerouter.web.body import Body

MAX_PARTS = 200
MAX_HEADER_BYTES = 8192
MAX_FIELD_BYTES = 4096
WINDOW_BYTES = 1024 * 1024

# Parameters of a header value: name=token or name="quoted \"text\"". Used on short values only.
_PARAMETER = re.compile(r';\s*([A-Za-z0-9!#$&+.^_`|~*-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))\s*(?=;|$)', re.S)
_ESCAPED = re.compile(r'\\(["\\])')
# RFC 2046 §5.1.1: at most 70 characters of a known set.
_BOUNDARY = re.compile(r"[A-Za-z0-9'()+_,./:=? -]{0,69}[A-Za-z0-9'()+_,./:=?-]")


class Source(Protocol):
    """The part of `bytes` that is needed. Slices always have both ends."""

    def find(self, sub: bytes, start: int, end: int = ..., /) -> int: ...
    def __getitem__(self, key: slice, /) -> bytes: ...


class FileSource:
    """A file as a `Source`, read in windows. (`mmap.find` walks byte by byte and keeps the GIL all the way.)"""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._size = size

    def find(self, sub: bytes, start: int, end: int | None = None, /) -> int:
        end = self._size if end is None else min(end, self._size)
        while start < end:
            window = self[start : min(start + WINDOW_BYTES, end)]
            if (at := window.find(sub)) != -1:
                return start + at
            if start + len(window) >= end or len(window) < len(sub):
                return -1
            # What is looked for may lie across two windows.
            start += len(window) - len(sub) + 1
        return -1

    def __getitem__(self, key: slice, /) -> bytes:
        self._file.seek(key.start)
        return self._file.read(max(0, key.stop - key.start))


def parameters(value: str) -> dict[str, str]:
    """The parameters of a header value like `form-data; name="model"`, names in lower case.

    Reading stops at what is malformed. Raises BadRequest if one is given twice.
    """
    found: dict[str, str] = {}
    start = value.find(";")
    while start != -1 and (match := _PARAMETER.match(value, start)) is not None:
        name, quoted, token = match.groups()
        if name.lower() in found:
            raise BadRequest("a header of the multipart body gives a parameter twice")
        found[name.lower()] = _ESCAPED.sub(r"\1", quoted) if quoted is not None else token
        start = match.end() if match.end() < len(value) else -1
    return found


def boundary_of(content_type: str) -> str:
    """The boundary of a multipart content type. Raises BadRequest without a valid one."""
    boundary = parameters(content_type).get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise BadRequest("the multipart Content-Type has no valid boundary")
    return boundary


def multipart_field(body: Source, boundary: str, name: str) -> str | None:
    """The text of the one part called name, or None. Raises BadRequest if the body is no multipart/form-data."""
    span = field_span(body, boundary, name)
    return None if span is None else _field_text(body, *span, name)


def field_span(body: Source, boundary: str, name: str) -> tuple[int, int] | None:
    """Where the content of the one part called name begins and ends, or None. Raises BadRequest as `multipart_field`.

    A second part of that name is an error, as a duplicate key of a JSON object is: engines differ in which one counts.
    """
    delimiter = b"--" + boundary.encode("ascii")
    found: tuple[int, int] | None = None
    start = _after_first(body, delimiter)
    for _ in range(MAX_PARTS):
        if body[start : start + 2] == b"--":
            return found
        head_start = _skip_line_end(body, start)
        head_end = body.find(b"\r\n\r\n", max(head_start - 2, 0), head_start + MAX_HEADER_BYTES)
        if head_end == -1:
            raise BadRequest("a part of the multipart body has no end of its headers")
        end = body.find(b"\r\n" + delimiter, head_end + 2)
        if end == -1:
            raise BadRequest("the multipart body has no final boundary")
        if _part_name(body[head_start:head_end]) == name:
            if found is not None:
                raise BadRequest(f"the multipart body has two parts called {name!r}")
            found = (head_end + 4, max(head_end + 4, end))
        start = end + 2 + len(delimiter)
    raise BadRequest(f"the multipart body has more than {MAX_PARTS} parts")


async def form_field(body: Body, name: str) -> str | None:
    """`multipart_field` of a request body, wherever it lies. A file is read in a thread, and left at its start."""
    boundary = boundary_of(body.content_type)
    if body.file is None:
        return multipart_field(body.raw, boundary, name)
    file = body.file
    try:
        return await asyncio.to_thread(multipart_field, FileSource(file, body.size), boundary, name)
    finally:
        file.seek(0)


async def replace_form_field(body: Body, name: str, text: str) -> bytes | IO[bytes]:
    """The body with another text in the part called name, or with such a part; all else is the same byte for byte.

    The body itself stays; a copy in a file lives until the next one is made, or the body is closed.
    """
    boundary = boundary_of(body.content_type)
    if body.file is None:
        start, end, new = _replacement(body.raw, boundary, name, text)
        return body.raw[:start] + new + body.raw[end:]
    copy = await asyncio.to_thread(_rewritten, body.file, body.size, boundary, name, text)
    body.keep_copy(copy)
    return copy


def _replacement(source: Source, boundary: str, name: str, text: str) -> tuple[int, int, bytes]:
    """What to put between two places so that the part called name holds the text."""
    span = field_span(source, boundary, name)
    if span is not None:
        return (*span, text.encode())
    delimiter = b"--" + boundary.encode("ascii")
    at = _after_first(source, delimiter) - len(delimiter)
    head = f'\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
    return at, at, delimiter + head + text.encode() + b"\r\n"


def _rewritten(file: IO[bytes], size: int, boundary: str, name: str, text: str) -> IO[bytes]:
    """A copy with the field replaced; both are left at their starts."""
    start, end, new = _replacement(FileSource(file, size), boundary, name, text)
    copy: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it is what this gives
    file.seek(0)
    copy.write(file.read(start))
    copy.write(new)
    file.seek(end)
    shutil.copyfileobj(file, copy, WINDOW_BYTES)
    file.seek(0)
    copy.seek(0)
    return copy


def _after_first(body: Source, delimiter: bytes) -> int:
    """Where the first delimiter ends. A preamble before it is allowed, and nobody sends one."""
    if body[0 : len(delimiter)] == delimiter:
        return len(delimiter)
    at = body.find(b"\r\n" + delimiter, 0, MAX_HEADER_BYTES)
    if at == -1:
        raise BadRequest("the multipart body does not begin with its boundary")
    return at + 2 + len(delimiter)


def _skip_line_end(body: Source, start: int) -> int:
    """Past the white space and CRLF that end a delimiter line."""
    line_end = body.find(b"\r\n", start, start + 64)
    if line_end == -1 or body[start:line_end].strip(b" \t"):
        raise BadRequest("a boundary line of the multipart body is malformed")
    return line_end + 2


def _part_name(head: bytes) -> str:
    found: str | None = None
    for line in head.split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key.strip().lower() == b"content-disposition":
            name = parameters(value.decode("utf-8", "replace")).get("name")
            if found is not None or name is None:
                raise BadRequest("a part of the multipart body has no clear name")
            found = name
    if found is None:
        raise BadRequest("a part of the multipart body has no name")
    return found


def _field_text(body: Source, start: int, end: int, name: str) -> str:
    if end - start > MAX_FIELD_BYTES:
        raise BadRequest(f"the part {name!r} of the multipart body is too large")
    try:
        return body[start : max(start, end)].decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest(f"the part {name!r} of the multipart body is not UTF-8") from None
