"""The state file: tolerant when read, atomic when written, never a reason to crash."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import stat
from pathlib import Path

import pytest

from enginerouter.state import StateFile


async def test_what_is_put_is_there_after_a_restart(tmp_path: Path) -> None:
    first = StateFile(tmp_path / "state.json")
    first.put("learned", {"llama": {"start_s": 3.5}})
    first.put_entry("launches", "llama", {"pid": 12})
    await first.close()
    second = StateFile(tmp_path / "state.json")
    assert second.get("learned") == {"llama": {"start_s": 3.5}}
    assert second.get("launches") == {"llama": {"pid": 12}}


async def test_a_change_is_written_soon_without_flush(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    state = StateFile(path, delay_s=0.01)
    for number in range(20):
        state.put("learned", {"n": {"x": number}})
    async with asyncio.timeout(5):
        while not path.exists() or json.loads(path.read_text())["learned"]["n"]["x"] != 19:
            await asyncio.sleep(0.005)
    await state.close()


async def test_an_entry_put_as_none_is_removed(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "state.json")
    state.put_entry("launches", "a", {"pid": 1})
    state.put_entry("launches", "b", {"pid": 2})
    state.put_entry("launches", "a", None)
    await state.close()
    assert StateFile(tmp_path / "state.json").get("launches") == {"b": {"pid": 2}}


async def test_copies_are_given_so_that_nobody_changes_it_by_accident(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "state.json")
    state.put("learned", {"a": {"start_s": 1}})
    state.get("learned")["a"]["start_s"] = 99
    assert state.get("learned")["a"]["start_s"] == 1
    await state.close()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'"x"', b"\xff\xfe", b"nul", b"[" * 100_000])
def test_a_damaged_file_is_empty_and_said_so(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "state.json").write_bytes(content)
    assert StateFile(tmp_path / "state.json").get("learned") == {}
    assert "starting without it" in caplog.text


def test_a_section_of_the_wrong_type_is_ignored_and_the_others_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state.json").write_text('{"launches": [1], "learned": {"a": {}}, "active_engine": "a"}')
    state = StateFile(tmp_path / "state.json")
    assert state.get("launches") == {}
    assert state.get("learned") == {"a": {}}
    assert "launches" in caplog.text


def test_a_missing_file_is_no_reason_to_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert StateFile(tmp_path / "none" / "state.json").get("learned") == {}
    assert caplog.text == ""


async def test_a_bare_file_name_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The predecessor silently wrote nothing (E15)."""
    monkeypatch.chdir(tmp_path)
    state = StateFile(Path("state.json"))
    state.put("learned", {"a": {}})
    await state.close()
    assert json.loads((tmp_path / "state.json").read_text()) == {"learned": {"a": {}}}


async def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "state.json")
    state.put("learned", {})
    await state.close()
    assert stat.S_IMODE(os.stat(tmp_path / "state.json").st_mode) == 0o600


async def test_an_unwritable_place_is_one_warning_and_no_crash(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    state = StateFile(tmp_path / "file" / "state.json")  # a folder that cannot be: root may write anywhere
    caplog.set_level(logging.WARNING)
    for number in range(3):
        state.put("learned", {"a": {"n": number}})
        await state.flush()
    await state.close()
    assert caplog.text.count("cannot be written") == 1
    assert state.get("learned") == {"a": {"n": 2}}


async def test_nothing_is_left_beside_it(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "state.json")
    for number in range(5):
        state.put("learned", {"a": {"n": number}})
        await state.flush()
    await state.close()
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


async def test_flushes_at_the_same_time_leave_the_newest(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "state.json")
    flushes = []
    for number in range(10):
        state.put("learned", {"a": {"n": number}})
        flushes.append(state.flush())
    await asyncio.gather(*flushes)
    await state.close()
    assert StateFile(tmp_path / "state.json").get("learned") == {"a": {"n": 9}}


def test_two_paths_are_two_routers_and_spelling_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert StateFile(Path("state.json")).router_id == StateFile(tmp_path / "state.json").router_id
    assert StateFile(Path("state.json")).router_id != StateFile(Path("other.json")).router_id
