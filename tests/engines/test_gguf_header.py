"""The reader of GGUF headers: what it reads of real files, and that no bytes whatever do it harm."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enginerouter.engines import gguf
from enginerouter.engines.gguf import Header, read_header
from enginerouter.engines.launch_facts import FILE_TYPES, facts_in_gguf
from gguf_bytes import (
    ARCHITECTURE,
    ARRAY,
    STRING,
    UINT8,
    UINT32,
    WHOLE,
    array,
    header,
    pair,
    tensor,
    text,
)


def read(folder: Path, raw: bytes) -> Header | None:
    path = folder / "model.gguf"
    path.write_bytes(raw)
    return read_header(path)


def test_what_lies_behind_the_vocabulary_is_read_too(tmp_path: Path) -> None:
    found = read(tmp_path, WHOLE)
    assert found is not None
    assert found.values["llama.context_length"] == 131072
    assert found.parameter_count == 64 * 8 + 100
    facts = facts_in_gguf(found, 4_000, 1.5)
    assert (facts.context_length, facts.architecture, facts.size_bytes, facts.modified_utc) == (
        131072,
        "llama",
        4_000,
        1.5,
    )
    assert facts.all_capabilities == ("completion", "tools", "thinking")


def test_a_real_writer_s_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the `real` extra (gguf, numpy)")
    import make_gguf

    found = read_header(make_gguf.make_gguf(tmp_path / "red.gguf"))
    assert found is not None
    facts = facts_in_gguf(found, 1, 1.0)
    assert (facts.context_length, facts.embedding_length, facts.architecture) == (8192, 64, "llama")
    assert (facts.basename, facts.quantization) == ("red", "F16")
    assert facts.parameter_count is not None
    assert 100_000 < facts.parameter_count < 200_000
    assert facts.all_capabilities == ("completion",), "its template knows no tools"


def test_file_types_have_the_names_that_llama_cpp_gives_them() -> None:
    gguf = pytest.importorskip("gguf", reason="needs the `real` extra (gguf, numpy)")
    for number, name in FILE_TYPES.items():
        assert gguf.LlamaFileType(number).name.removeprefix("MOSTLY_").removeprefix("ALL_") == name


@pytest.mark.parametrize(
    ("keys", "capabilities"),
    [
        ((pair("general.architecture", STRING, text("bert")),), ("embedding",)),
        (
            (
                pair("general.architecture", STRING, text("qwen3")),
                pair("qwen3.pooling_type", UINT32, struct.pack("<I", 3)),
            ),
            ("embedding",),
        ),
        ((ARCHITECTURE, pair("tokenizer.ggml.fim_pre_token_id", UINT32, b"\1\0\0\0")), ("completion", "insert")),
    ],
)
def test_what_a_model_is_for_shows_in_its_keys(
    tmp_path: Path, keys: tuple[bytes, ...], capabilities: tuple[str, ...]
) -> None:
    found = read(tmp_path, header(*keys))
    assert found is not None
    assert facts_in_gguf(found, 1, 1.0).all_capabilities == capabilities


def test_a_part_of_a_model_does_not_say_how_large_the_whole_is(tmp_path: Path) -> None:
    found = read(tmp_path, header(pair("split.count", UINT32, struct.pack("<I", 3)), tensors=1) + tensor("a", 64))
    assert found is not None
    assert facts_in_gguf(found, 1, 1.0).parameter_count is None


@pytest.mark.parametrize("length", [*range(64), len(WHOLE) // 2, len(WHOLE) - 1])
def test_a_file_that_is_cut_short_says_nothing(tmp_path: Path, length: int) -> None:
    assert read(tmp_path, WHOLE[:length]) is None


@pytest.mark.parametrize(
    "raw",
    [
        header(magic=b"GGML"),
        header(version=1),
        header(version=0x03000000),  # big-endian
        header(keys=1 << 62),
        header(tensors=1 << 62),
        header(pair("x", STRING, struct.pack("<Q", 1 << 62))),
        header(pair("x", ARRAY, array(STRING, count=1 << 62))),
        header(pair("x", ARRAY, array(UINT32, count=1 << 61))),
        header(pair("x", ARRAY, array(ARRAY, array(ARRAY, array(ARRAY, array(ARRAY, array(UINT8)))), count=1))),
        header(pair("x", 77, b"\0" * 8)),
        header(tensors=1) + text("t") + struct.pack("<I", 1 << 31),
    ],
)
def test_lengths_that_cannot_be_are_not_believed(tmp_path: Path, raw: bytes) -> None:
    assert read(tmp_path, raw + b"\0" * 64) is None


@pytest.mark.parametrize("most_bytes", [1 << 20, pytest.param(gguf.MOST_BYTES, marks=pytest.mark.slow)])
def test_no_more_is_read_than_a_header_can_be_long(
    tmp_path: Path, most_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "MOST_BYTES", most_bytes)
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.write(header(pair("x", ARRAY, array(STRING, count=most_bytes)), keys=1))
        file.truncate(1 << 40)  # sparse: a terabyte of texts of no length
    began_at = time.process_time()
    assert read_header(path) is None
    assert time.process_time() - began_at < 20


@pytest.mark.parametrize("name", ["missing.gguf", "."])
def test_what_is_no_file_says_nothing(tmp_path: Path, name: str) -> None:
    assert read_header(tmp_path / name) is None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tail=st.binary(max_size=300), keys=st.integers(0, 5), tensors=st.integers(0, 3))
def test_any_bytes_give_a_header_or_nothing(tmp_path: Path, tail: bytes, keys: int, tensors: int) -> None:
    found = read(tmp_path, header(keys=keys, tensors=tensors) + tail)
    if found is not None:
        facts_in_gguf(found, 1, 1.0)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255))
def test_any_one_wrong_byte_gives_a_header_or_nothing(tmp_path: Path, at: int, byte: int) -> None:
    found = read(tmp_path, WHOLE[:at] + bytes([byte]) + WHOLE[at + 1 :])
    if found is not None:
        facts_in_gguf(found, 1, 1.0)
