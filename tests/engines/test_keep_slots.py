"""What a llama-server has read is kept over its end; whatever goes wrong there stops nothing."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from boxes import SCRIPTS, SLOT, Box

from enginerouter.config.engines import GenericProcess
from enginerouter.engines.keepslots import SlotFiles, make_folder, slot_files, slot_folder
from enginerouter.engines.launch import Launch, plan_launch
from enginerouter.engines.process import GenericProcessEngine


def plan(*words: str, cwd: Path | None = None, port: int = 0) -> Launch:
    settings = GenericProcess(name="llama", start_cmd=("llama-server", "--port", "{port}", *words), cwd=cwd)
    return plan_launch(settings, SLOT, Path("/base"), port)


def test_the_folder_is_the_one_the_server_is_given(tmp_path: Path) -> None:
    assert slot_folder(plan("--slot-save-path", "/kv")) == Path("/kv")
    assert slot_folder(plan("--slot-save-path=kv", cwd=tmp_path)) == tmp_path / "kv"
    assert slot_folder(plan()) is None
    assert make_folder(plan("--slot-save-path", str(tmp_path / "a" / "b"))) == ""
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    assert "file" in make_folder(plan("--slot-save-path", str(tmp_path / "file" / "b")))


def test_another_model_or_command_has_other_files(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"one")

    def key(*more: str) -> str:
        files = slot_files(plan("-m", str(model), "--slot-save-path", "/kv", *more))
        assert files is not None
        return files.key

    first = key()
    assert key() == first
    assert key("-c", "512") != first
    model.write_bytes(b"another")
    assert key() != first


def test_only_files_of_ours_are_ours() -> None:
    files = SlotFiles(Path("/kv"), "enginerouter-llama-", "0" * 16)
    assert files.number(files.name(3)) == 3
    assert files.is_family(f"enginerouter-llama-{'a' * 16}-0.bin")
    for name in ("enginerouter-llama-big-0000000000000000-0.bin", "x.bin", f"enginerouter-llama-{'a' * 16}-x.bin"):
        assert not files.is_family(name)
        assert files.number(name) is None


# --- against a scripted server ----------------------------------------------------------------------------


def keeping(box: Box, lie: str = "", **settings: object) -> GenericProcessEngine:
    script = str(SCRIPTS / "slot_server.py")
    command = (
        sys.executable,
        "-I",
        script,
        "--port",
        "{port}",
        "--lie",
        lie,
        "--slot-save-path",
        str(box.folder / "kv"),
    )
    return box.engine(*command, **({"keep_slots": True, "stop_timeout_s": 1.0} | settings))


async def calls(engine: GenericProcessEngine) -> list[str]:
    return [line.split()[1] for line in await engine.log_tail(SLOT) if line.startswith("call ")]


def kept(box: Box) -> dict[str, str]:
    return {path.name[-5]: json.loads(path.read_text())["says"] for path in (box.folder / "kv").iterdir()}


async def test_used_slots_are_saved_before_the_end_and_restored_after_the_start(box: Box) -> None:
    engine = keeping(box)
    await engine.start(SLOT)
    assert await calls(engine) == []
    await engine.stop(SLOT)
    assert kept(box) == {"0": "tokens of 0", "2": "tokens of 2"}, "slot 1 was empty"
    await engine.start(SLOT)
    assert (await calls(engine))[-2:] == ["/slots/0?action=restore", "/slots/2?action=restore"]
    assert kept(box) == {}, "what is restored is not needed twice"


async def test_what_is_saved_outlives_the_router(box: Box) -> None:
    engine = keeping(box)
    await engine.start(SLOT)
    await engine.stop(SLOT)
    await engine.close()
    later = keeping(box)
    await later.start(SLOT)
    assert (await calls(later))[-1] == "/slots/2?action=restore"


async def test_what_was_read_with_other_settings_is_not_offered_and_removed(box: Box) -> None:
    engine = keeping(box)
    await engine.start(SLOT)
    await engine.stop(SLOT)
    await engine.close()
    later = keeping(box, "other")
    await later.start(SLOT)
    assert "restore" not in (await calls(later))[-1]
    assert kept(box) == {}


@pytest.mark.parametrize("lie", ["no-slots", "save-fails", "save-hangs", "no-json", "dies"])
async def test_a_save_that_fails_does_not_keep_the_engine_from_going(
    box: Box, lie: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = keeping(box, lie, stop_timeout_s=0.4)
    await engine.start(SLOT)
    await engine.stop(SLOT)
    assert engine.pid(SLOT) is None
    assert "not saved" in caplog.text or "was not done within" in caplog.text
    await engine.start(SLOT)
    assert box.crashes.empty()


@pytest.mark.parametrize("lie", ["restore-fails", "restore-hangs"])
async def test_a_restore_that_fails_does_not_keep_the_engine_from_serving(
    box: Box, lie: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = keeping(box, lie, stop_timeout_s=0.4)
    await engine.start(SLOT)
    await engine.stop(SLOT)
    assert kept(box)
    await engine.start(SLOT)
    assert "not restored" in caplog.text or "was not done within" in caplog.text
    assert engine.pid(SLOT) is not None


async def test_a_server_that_sleeps_is_not_woken_to_save_nothing(box: Box) -> None:
    engine = keeping(box, "sleeps")
    await engine.start(SLOT)
    await engine.stop(SLOT)
    assert await calls(engine) == ["/props"]


async def test_at_the_end_of_the_router_what_the_resident_engine_has_read_is_saved_too(box: Box) -> None:
    """A restart of the router used to lose the conversations of the one engine that was in use."""
    engine = keeping(box)
    await engine.start(SLOT)
    await engine.end(SLOT)
    assert kept(box) == {"0": "tokens of 0", "2": "tokens of 2"}
    assert engine.pid(SLOT) is None


async def test_a_save_that_hangs_at_the_end_of_the_router_costs_a_bounded_time(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enginerouter.engines.process.SAVE_AT_END_TIMEOUT_S", 0.3)
    engine = keeping(box, "save-hangs", stop_timeout_s=20.0)
    await engine.start(SLOT)
    began_at = time.monotonic()
    await engine.end(SLOT)
    assert 0.3 <= time.monotonic() - began_at < 3.0
    assert engine.pid(SLOT) is None
