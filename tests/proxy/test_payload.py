"""A body that is sent more than once."""

from __future__ import annotations

import tempfile

from enginerouter.proxy.payload import for_one_try


def test_two_tries_that_overlap_both_read_the_whole_file() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(range(256)) * 1000)
        file.flush()
        first, second = for_one_try(file), for_one_try(file)
        assert not isinstance(first, bytes)
        assert not isinstance(second, bytes)
        half = first.read(100_000)
        whole = second.read()
        assert half + first.read() == whole == bytes(range(256)) * 1000
        first.close()
        second.close()
        file.seek(0)
        assert file.read() == whole, "closing a try leaves the file open"


def test_a_try_outlives_the_file_it_reads() -> None:
    """An upload that was given up may still read in its thread; it must not read what gets the descriptor next."""
    with tempfile.TemporaryFile() as file:
        file.write(b"mine")
        file.flush()
        view = for_one_try(file)
    with tempfile.TemporaryFile() as other:
        other.write(b"theirs")
        other.flush()
        assert not isinstance(view, bytes)
        assert view.read() == b"mine"
        view.close()


def test_bytes_are_sent_as_they_are() -> None:
    assert for_one_try(b"x") == b"x"
