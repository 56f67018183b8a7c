"""Profiles as launches: what the command becomes, and processes that are switched."""

from __future__ import annotations

from pathlib import Path

import pytest
from boxes import Box, fake, is_alive

from enginerouter.config.engines import GenericProcess, Profile
from enginerouter.engines import adoption
from enginerouter.engines.launch import (
    Launch,
    container_grace_s,
    flag_words,
    plan_launch,
    problems_of,
    stop_timeout_s,
)
from enginerouter.errors import NotBuilt, StartFailed
from enginerouter.slots import SlotId
from llama import free_port

BIG, SMALL = SlotId("llama", "big"), SlotId("llama", "small")


def plan(*start_cmd: str, profile: Profile, **more: object) -> Launch:
    settings = GenericProcess(name="llama", start_cmd=start_cmd, profiles={profile.id: profile}, **more)  # type: ignore[arg-type]
    return plan_launch(settings, SlotId("llama", profile.id), Path("/etc/er"), 4000)


def test_flags_become_words() -> None:
    flags = {"ctx-size": "8192", "c": "1", "-ngl": "99", "jinja": None, "lora": ("a", "b"), "x": (None, "on"), "e": ()}
    expected = "--ctx-size 8192 -c 1 -ngl 99 --jinja --lora a --lora b -x -x on"
    assert flag_words(flags) == expected.split()


def test_the_placeholders_become_the_profiles() -> None:
    profile = Profile(
        id="big",
        model=Path("/m/my {id} file.gguf"),
        flags={"alias": "{id}", "text": "two words", "b": None},
        env={"NAME": "{id}", "A": "profile"},
    )
    launch = plan(
        "x", "{flags}", "-m", "{model}", "--at={port}/{id}", "sh {flags}", "{other}",
        profile=profile, env={"A": "engine", "B": "{port}"}, stop_cmd=("docker", "stop", "{id}"),
        ready_check="model:{id}",
    )  # fmt: skip
    assert launch.argv == (
        "x", "--alias", "big", "--text", "two words", "-b", "-m", "/m/my {id} file.gguf", "--at=4000/big",
        "sh --alias big --text 'two words' -b", "{other}",
    )  # fmt: skip
    assert launch.env == {"A": "profile", "B": "4000", "NAME": "big"}
    assert launch.stop_argv == ("docker", "stop", "big")
    assert launch.ready.check == "model:big"


def test_profiles_have_logs_and_digests_of_their_own() -> None:
    launches = [plan("x", "{flags}", "{model}", profile=Profile(id=i, model=Path("m"))) for i in ("p", "q")]
    assert launches[0].log_path != launches[1].log_path
    more = plan("x", "{flags}", "{model}", profile=Profile(id="p", model=Path("m"), flags={"c": "1"}))
    assert more.digest != launches[0].digest


def test_without_profiles_the_other_placeholders_stay() -> None:
    settings = GenericProcess(name="a", start_cmd=("x", "{model}", "{flags}", "{port}"))
    launch = plan_launch(settings, SlotId("a"), Path("/"), 1)
    assert launch.argv == ("x", "{model}", "{flags}", "1")


def test_a_profile_whose_file_is_missing_is_told_before_anything_is_drained(tmp_path: Path) -> None:
    profile = Profile(id="p", model=tmp_path / "none.gguf")
    assert "none.gguf' does not exist: correct the profile" in str(
        problems_of(plan("sh", "{model}", profile=profile), {})
    )
    in_container = plan("docker", "run", "{model}", profile=profile)
    assert "none.gguf" not in str(problems_of(in_container, {}))


@pytest.mark.parametrize(
    ("command", "grace_s"),
    [("docker stop x", 10), ("docker stop -t 60 x", 60), ("docker stop --time=45 x", 45), ("podman stop -t5 x", 5),
     ("docker stop --timeout 30 x", 30), ("docker rm -f x", 10)],
)  # fmt: skip
def test_the_grace_of_a_container_is_read_from_its_stop_command(command: str, grace_s: float) -> None:
    assert container_grace_s(command.split()) == grace_s
    settings = GenericProcess(name="a", start_cmd=("docker", "run"), stop_cmd=tuple(command.split()))
    launch = plan_launch(settings, SlotId("a"), Path("/"), 1)
    assert stop_timeout_s(launch, 1) == grace_s + 5
    assert stop_timeout_s(launch, 100) == 100


# --- processes --------------------------------------------------------------------------------------------


def profiled(box: Box, **settings: object) -> dict[str, Profile]:
    models = [box.folder / name for name in ("big.gguf", "small.gguf")]
    for path in models:
        path.touch()
    big = Profile(id="big", model=models[0], flags={"say": "I am {id}", "session": None})
    return {"big": big, "small": Profile(id="small", model=models[1], flags={"say": "I am {id}"})}


async def test_profiles_at_one_address_are_processes_one_after_the_other(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enginerouter.engines.ending._ORPHAN_GRACE_S", 0.1)  # a child of one of them ignores signals
    port = free_port()
    engine = box.engine(
        *fake("{flags}", "--body", "{model}"), base_url=f"http://127.0.0.1:{port}", profiles=profiled(box)
    )
    await engine.check(BIG, ())
    await engine.start(BIG)
    first = engine.pid(BIG)
    assert first is not None
    assert "I am big" in await engine.log_tail(BIG)
    await engine.check(SMALL, (BIG,))
    with pytest.raises(StartFailed, match="'llama/big', which stays"):
        await engine.check(SMALL, ())
    await engine.stop(BIG)
    await engine.start(SMALL)
    assert not is_alive(first)
    assert engine.address(SMALL) == engine.address(BIG) == f"http://127.0.0.1:{port}"
    assert "I am small" in await engine.log_tail(SMALL)


async def test_a_profile_whose_flag_takes_no_value_is_named_with_how_to_write_a_bare_switch(
    box: Box, tmp_path: Path
) -> None:
    """`jinja: on` becomes `--jinja on`, which llama-server calls an invalid argument."""
    (tmp_path / "m.gguf").touch()
    profile = Profile(id="big", model=tmp_path / "m.gguf", flags={"say": "error: invalid argument: on", "exit": "1"})
    engine = box.engine(*fake("{flags}"), "--body", "{model}", profiles={"big": profile})
    with pytest.raises(StartFailed, match=r"^profile 'big' of engine 'llama' exited with status 1, ") as caught:
        await engine.start(BIG)
    assert caught.value.cause == "bad_flag"
    assert "correct the profile's `flags` (a bare switch is written `jinja: null`," in caught.value.message
    assert "one dash is written out, `-ngl: 99`" in caught.value.message
    await engine.stop(BIG)


async def test_a_slot_that_is_no_profile_is_refused(box: Box) -> None:
    engine = box.engine(*fake("{flags}"), profiles=profiled(box))
    for slot in (SlotId("llama"), SlotId("llama", "none")):
        with pytest.raises(NotBuilt, match="nothing to launch as"):
            await engine.check(slot, ())


async def test_after_a_hard_end_profiles_are_adopted_and_removed_ones_ended(box: Box) -> None:
    profiles = profiled(box)
    engine = box.engine(*fake("{flags}"), profiles=profiles)
    await engine.start(BIG)
    await engine.start(SMALL)
    big, small = engine.pid(BIG), engine.pid(SMALL)
    assert big is not None
    assert small is not None
    # The router is gone; the next one knows only one of the two.
    await engine.close()
    later = box.engine(*fake("{flags}"), profiles={"small": profiles["small"]}, stop_timeout_s=0.2)
    assert await later.adopt() == [SMALL]
    assert later.pid(SMALL) == small
    assert not is_alive(big)
    assert list(box.state.get(adoption.SECTION)) == ["llama/small"]
