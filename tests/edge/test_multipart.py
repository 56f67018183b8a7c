"""The model field of a form: found without loading files, refused when two readers could differ (F3)."""

from __future__ import annotations

import contextlib
import io
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginerouter.errors import BadRequest, RouterError
from enginerouter.web.body import Body, BufferBudget
from enginerouter.web.multipart import (
    MAX_PARTS,
    WINDOW_BYTES,
    FileSource,
    boundary_of,
    form_field,
    multipart_field,
    parameters,
)


def part(disposition: str, content: bytes, boundary: str = "b") -> bytes:
    return f"--{boundary}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"


MODEL = part('form-data; name="model"', b"whisper")
FILE = part('form-data; name="file"; filename="a.wav"', b'RIFF\r\n\r\nname="model"\r\n--x\r\n--' + bytes(100))
END = b"--b--\r\n"


@pytest.mark.parametrize(
    "body",
    [
        MODEL + FILE + END,
        FILE + MODEL + END,
        FILE + FILE + MODEL + END,
        b"preamble\r\n" + MODEL + END + b"epilogue --b\r\n",
        part("form-data; name=model", b"whisper") + END,
        part('FORM-DATA; filename="x;name=y"; NAME="model"', b"whisper") + END,
        MODEL.replace(b"Content-Disposition", b"X-A: 1\r\ncontent-disposition") + END,
        MODEL.replace(b"--b\r\n", b"--b \t\r\n") + END,
    ],
)
def test_the_field_is_found(body: bytes) -> None:
    assert multipart_field(body, "b", "model") == "whisper"
    assert multipart_field(FileSource(io.BytesIO(body), len(body)), "b", "model") == "whisper"


def test_a_form_without_the_field_gives_none() -> None:
    assert multipart_field(FILE + END, "b", "model") is None
    assert multipart_field(END, "b", "model") is None
    assert multipart_field(part('form-data; name="model"', b"") + END, "b", "model") == ""
    assert multipart_field(part('form-data; name="mod\\"el"', b"x") + END, "b", 'mod"el') == "x"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b",
        b"--b\r\n",
        MODEL,
        b"no boundary at all",
        (MODEL + END).replace(b"--b", b"--c"),
        MODEL + part('form-data; name="model"', b"other") + END,
        part('form-data; name="model"; name="x"', b"a") + END,
        part('form-data; name="model', b"a") + END,
        part('form-data; name="a" name="model"', b"a") + END,
        part("form-data", b"a") + END,
        b"--b\r\nX-A: 1\r\n\r\na\r\n" + END,
        b"--b\r\n\r\na\r\n" + END,
        MODEL.replace(b"\r\n\r\n", b"\r\nContent-Disposition: form-data; name=x\r\n\r\n") + END,
        part('form-data; name="model"', b"x" * 5000) + END,
        part('form-data; name="model"', b"\xff") + END,
        b"--b\r\nContent-Disposition: form-data; name=" + b"a" * 10_000 + b"\r\n\r\n\r\n" + END,
        FILE * (MAX_PARTS + 1) + END,
    ],
    ids=range(18),
)
def test_what_is_no_clear_form_is_refused(body: bytes) -> None:
    for source in (body, FileSource(io.BytesIO(body), len(body))):
        with pytest.raises(BadRequest):
            multipart_field(source, "b", "model")


def test_a_hundred_thousand_parts_are_refused_at_once() -> None:
    body = part("form-data; name=a", b"") * 100_000 + END
    started = time.perf_counter()
    with pytest.raises(BadRequest, match="parts"):
        multipart_field(body, "b", "model")
    assert time.perf_counter() - started < 0.1


@pytest.mark.parametrize("offset", range(-12, 3))
def test_a_boundary_across_two_windows_of_a_file_is_seen(offset: int) -> None:
    head = part("form-data; name=file", b"")[:-2]
    body = head + b"-" * (WINDOW_BYTES - len(head) + offset) + b"\r\n" + MODEL + END
    assert multipart_field(FileSource(io.BytesIO(body), len(body)), "b", "model") == "whisper"


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=abc", "abc"),
        ('multipart/form-data; charset=utf-8; Boundary="a b=c"', "a b=c"),
        ("multipart/form-data;boundary=----WebKitFormBoundary7MA4", "----WebKitFormBoundary7MA4"),
        ("multipart/form-data", None),
        ("multipart/form-data; boundary=", None),
        ('multipart/form-data; boundary="a\r\nb"', None),
        ("multipart/form-data; boundary=" + "a" * 71, None),
        ("multipart/form-data; boundary=ä", None),
        ("multipart/form-data; boundary=a; boundary=b", None),
    ],
)
def test_boundaries(content_type: str, boundary: str | None) -> None:
    if boundary is None:
        with pytest.raises(BadRequest):
            boundary_of(content_type)
    else:
        assert boundary_of(content_type) == boundary


async def test_a_body_is_read_where_it_lies() -> None:
    in_memory = Body(BufferBudget(1000), "multipart/form-data; boundary=b")
    in_memory.raw = FILE + MODEL + END
    assert await form_field(in_memory, "model") == "whisper"
    in_file = Body(BufferBudget(1000), "multipart/form-data; boundary=b")
    in_file.file = io.BytesIO(in_memory.raw)
    in_file.size = len(in_memory.raw)
    assert await form_field(in_file, "model") == "whisper"
    assert in_file.file.tell() == 0


PIECES = [b"--b", b"--b--", b"\r\n", b"Content-Disposition: form-data; name=", b'"model"', b"model", b";", b'"', b"\\"]


@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=5), max_size=30).map(b"".join))
@settings(max_examples=150, deadline=None)
def test_any_bytes_give_a_text_or_a_4xx_alike_from_memory_and_file(body: bytes) -> None:
    results: list[str | tuple[int, str] | None] = []
    for source in (body, FileSource(io.BytesIO(body), len(body))):
        try:
            results.append(multipart_field(source, "b", "model"))
        except RouterError as error:
            results.append((error.status, error.message))
    assert results[0] == results[1]
    assert results[0] is None or isinstance(results[0], str) or results[0][0] == 400


@given(st.text(max_size=100))
def test_any_header_value_has_parameters_or_is_refused(value: str) -> None:
    with contextlib.suppress(BadRequest):
        parameters(value)
