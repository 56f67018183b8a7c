"""Engines in containers: the client is ours, what it runs is not."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import time
from pathlib import Path

import pytest
from boxes import SCRIPTS, SLOT, Box, fake, is_alive

from enginerouter.config.engines import Profile
from enginerouter.engines.left_running import end_launches_of_removed_engines
from enginerouter.engines.process import GenericProcessEngine
from enginerouter.errors import FreeFailed, PortTaken, StartFailed
from enginerouter.slots import SlotId
from llama import free_port


def contained(box: Box, *options: str, stop: tuple[str, ...] = ("stop", "box"), **more: object) -> GenericProcessEngine:
    docker = str(SCRIPTS / "docker")
    command = (docker, "run", "--name", "box", "image", *fake(*options))
    env = {"FAKE_DOCKER": str(box.folder)}
    address = f"http://127.0.0.1:{free_port()}"
    return box.engine(*command, base_url=address, stop_cmd=(docker, *stop), env=env, **more)


def container(folder: Path) -> int:
    return int((folder / "box").read_text())


async def test_a_container_is_started_served_and_stopped_with_its_client(box: Box) -> None:
    engine = contained(box)
    await engine.check(SLOT, ())
    await engine.start(SLOT)
    client, inside = engine.pid(SLOT), container(box.folder)
    assert client is not None
    assert client != inside
    assert await engine.held_bytes(SLOT) is None
    await engine.stop(SLOT)
    assert not is_alive(client)
    assert not is_alive(inside)
    await engine.start(SLOT)
    assert container(box.folder) != inside


async def test_its_grace_is_honoured_although_the_stop_time_out_is_shorter(box: Box) -> None:
    engine = contained(box, "--ignore-term", stop=("stop", "-t", "1", "box"), stop_timeout_s=0.1)
    await engine.start(SLOT)
    inside = container(box.folder)
    began_at = time.monotonic()
    await engine.stop(SLOT)
    assert 0.9 < time.monotonic() - began_at < 4
    assert not is_alive(inside)


async def test_a_container_that_dies_is_a_crash_and_is_started_again(box: Box) -> None:
    engine = contained(box)
    await engine.start(SLOT)
    os.kill(container(box.folder), signal.SIGKILL)
    await asyncio.wait_for(box.crashes.get(), 5)
    await engine.stop(SLOT)
    await engine.start(SLOT)
    assert is_alive(container(box.folder))


async def test_a_killed_client_leaves_a_container_that_the_stop_command_ends(box: Box) -> None:
    engine = contained(box)
    await engine.start(SLOT)
    client, inside = engine.pid(SLOT), container(box.folder)
    assert client is not None
    os.kill(client, signal.SIGKILL)
    await asyncio.wait_for(box.crashes.get(), 5)
    assert is_alive(inside)
    await engine.stop(SLOT)
    assert not is_alive(inside)


async def test_a_container_of_an_earlier_router_is_adopted(box: Box) -> None:
    engine = contained(box)
    await engine.start(SLOT)
    inside = container(box.folder)
    await engine.close()
    later = box.engine(
        *engine._settings.start_cmd,
        base_url=engine._settings.base_url,
        stop_cmd=engine._settings.stop_cmd,
        env=engine._settings.env,
    )
    assert await later.adopt() == [SLOT]
    await later.stop(SLOT)
    assert not is_alive(inside)


async def test_a_container_whose_client_died_with_the_router_is_stopped_and_not_run_twice(box: Box) -> None:
    """As a service manager ends a service: all of its processes at once, and the container is none of them."""
    engine = contained(box)
    await engine.start(SLOT)
    client, inside = engine.pid(SLOT), container(box.folder)
    assert client is not None
    await engine.close()
    os.kill(client, signal.SIGKILL)
    while is_alive(client):
        await asyncio.sleep(0.01)
    assert is_alive(inside)
    later = box.engine(
        *engine._settings.start_cmd,
        base_url=engine._settings.base_url,
        stop_cmd=engine._settings.stop_cmd,
        env=engine._settings.env,
    )
    assert await later.adopt() == []
    assert not is_alive(inside)
    await later.start(SLOT)
    assert container(box.folder) != inside


async def left_behind(box: Box, *, client_lives: bool = True, **more: object) -> int:
    """A container of a router that is gone; its process."""
    engine = contained(box, **more)
    slot = SlotId("llama", "one") if "profiles" in more else SLOT
    await engine.start(slot)
    client, inside = engine.pid(slot), container(box.folder)
    await engine.close()
    while client is not None and not client_lives and is_alive(client):
        os.kill(client, signal.SIGKILL)
        await asyncio.sleep(0.01)
    return inside


@pytest.mark.parametrize("client_lives", [True, False])
async def test_a_container_of_a_changed_engine_is_stopped_by_the_command_it_was_launched_with(
    box: Box, client_lives: bool
) -> None:
    inside = await left_behind(box, client_lives=client_lives)
    docker = str(SCRIPTS / "docker")
    address = f"http://127.0.0.1:{free_port()}"
    command = (docker, "run", "--name", "other", "image", *fake())
    env = {"FAKE_DOCKER": str(box.folder)}
    later = box.engine(*command, base_url=address, stop_cmd=(docker, "stop", "other"), env=env)
    assert await later.adopt() == []
    assert not is_alive(inside)
    assert box.state.get("launches") == {}
    assert [(ended.slot, ended.held_bytes) for ended in later.take_ended()] == [(SLOT, None)]


async def test_a_container_of_an_engine_that_runs_without_one_now_is_stopped(box: Box) -> None:
    inside = await left_behind(box)
    assert await box.engine(*fake()).adopt() == []
    assert not is_alive(inside)


async def test_a_corrected_stop_command_is_used_for_what_is_launched_as_before(box: Box) -> None:
    """Whoever is told to correct it must not meet the old one again."""
    engine = contained(box, stop=("stop", "another"))
    await engine.start(SLOT)
    inside = container(box.folder)
    await engine.close()
    docker = str(SCRIPTS / "docker")
    settings = engine._settings
    later = box.engine(
        *settings.start_cmd, base_url=settings.base_url, stop_cmd=(docker, "stop", "box"), env=settings.env
    )
    assert await later.adopt() == [SLOT]
    await later.stop(SLOT)
    assert not is_alive(inside)


@pytest.mark.parametrize("client_lives", [True, False])
async def test_the_container_of_a_removed_profile_is_stopped(
    box: Box, monkeypatch: pytest.MonkeyPatch, client_lives: bool
) -> None:
    monkeypatch.setenv("FAKE_DOCKER", str(box.folder))  # what its client had is known only while that lives
    model = box.folder / "m.gguf"
    model.touch()
    inside = await left_behind(box, client_lives=client_lives, profiles={"one": Profile(id="one", model=model)})
    later = contained(box, profiles={"two": Profile(id="two", model=model)})
    assert await later.adopt() == []
    assert not is_alive(inside)
    assert box.state.get("launches") == {}


async def test_the_container_of_a_removed_engine_is_stopped_with_the_environment_of_its_client(box: Box) -> None:
    inside = await left_behind(box)
    assert [ended.slot for ended in await end_launches_of_removed_engines(box.state, [])] == [SLOT]
    assert not is_alive(inside)
    assert box.state.get("launches") == {}


async def test_the_container_of_a_removed_engine_is_stopped_although_its_client_is_gone(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_DOCKER", str(box.folder))
    inside = await left_behind(box, client_lives=False)
    assert [ended.slot for ended in await end_launches_of_removed_engines(box.state, [])] == [SLOT]
    assert not is_alive(inside)


async def test_the_container_of_a_removed_engine_that_runs_on_is_told_and_not_forgotten(
    box: Box, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("enginerouter.engines.ending.CONTAINER_PORT_TIMEOUT_S", 0.3)
    inside = await left_behind(box, client_lives=False, stop=("stop", "another"))
    await end_launches_of_removed_engines(box.state, [])
    assert "the container may be running on" in caplog.text
    assert "llama" in box.state.get("launches"), "the next start of the router tries it again"
    os.kill(inside, signal.SIGKILL)
    while is_alive(inside):
        await asyncio.sleep(0.01)


async def test_a_container_of_an_earlier_router_that_will_not_stop_is_told_and_not_forgotten(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enginerouter.engines.ending.CONTAINER_PORT_TIMEOUT_S", 0.3)
    engine = contained(box, stop=("stop", "another"))
    await engine.start(SLOT)
    client, inside = engine.pid(SLOT), container(box.folder)
    await engine.close()
    os.kill(client or 0, signal.SIGKILL)
    while is_alive(client or 0):
        await asyncio.sleep(0.01)
    later = box.engine(
        *engine._settings.start_cmd,
        base_url=engine._settings.base_url,
        stop_cmd=engine._settings.stop_cmd,
        env=engine._settings.env,
    )
    with pytest.raises(FreeFailed, match="the container may be running on"):
        await later.adopt()
    os.kill(inside, signal.SIGKILL)
    while is_alive(inside):
        await asyncio.sleep(0.01)


async def test_a_stop_command_that_names_another_container_is_told(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enginerouter.engines.ending.CONTAINER_PORT_TIMEOUT_S", 0.3)
    engine = contained(box, "--ignore-term", stop=("stop", "another"), stop_timeout_s=0.1)
    monkeypatch.setattr("enginerouter.engines.launch._CONTAINER_GRACE_S", -4.8)
    await engine.start(SLOT)
    inside = container(box.folder)
    with pytest.raises(FreeFailed, match="the container may be running on"):
        await engine.stop(SLOT)
    os.kill(inside, signal.SIGKILL)
    while is_alive(inside):
        await asyncio.sleep(0.01)


async def test_a_container_that_fails_to_start_is_an_error_with_its_words_and_leaves_nothing(box: Box) -> None:
    engine = contained(box, "--delay", "0.1", "--say", "CUDA error: out of memory", "--exit", "1")
    with pytest.raises(StartFailed, match="it ran out of memory") as caught:
        await engine.start(SLOT)
    assert caught.value.cause == "out_of_memory"
    assert "CUDA error: out of memory" in (caught.value.admin_detail or "")
    await engine.stop(SLOT)
    assert engine.pid(SLOT) is None
    assert not (box.folder / "box").exists()


async def test_an_image_that_is_not_there_is_an_error_with_dockers_own_words(box: Box) -> None:
    docker = str(SCRIPTS / "docker")
    address = f"http://127.0.0.1:{free_port()}"
    env = {"FAKE_DOCKER": str(box.folder), "FAKE_DOCKER_REFUSES": "Unable to find image 'nope:latest' locally"}
    engine = box.engine(
        docker, "run", "--name", "box", "nope", "x", base_url=address, stop_cmd=(docker, "stop", "box"), env=env
    )
    with pytest.raises(StartFailed, match="exited with status 125") as caught:
        await engine.start(SLOT)
    assert "Unable to find image" in (caught.value.admin_detail or "")
    await engine.stop(SLOT)


async def test_a_stranger_at_the_port_of_a_container_that_answers_200_is_not_taken_for_it(box: Box) -> None:
    engine = contained(box)
    stranger = box.engine(*fake(), base_url=engine._settings.base_url)
    await stranger.start(SLOT)
    pid = stranger.pid(SLOT)
    other = Box(box.folder / "other")
    other.folder.mkdir()
    try:
        apart = contained(other)
        apart._settings = dataclasses.replace(apart._settings, base_url=engine._settings.base_url)
        for step in (apart.check(SLOT, ()), apart.start(SLOT)):
            with pytest.raises(PortTaken, match=f"process {pid}"):
                await step
        assert not (other.folder / "box").exists(), "nothing was run"
        assert is_alive(pid or 0)
    finally:
        await other.close()
