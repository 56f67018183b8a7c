"""A launch as a plain value."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from enginerouter.config.engines import GenericProcess
from enginerouter.engines.launch import (
    Launch,
    child_environment,
    file_name,
    model_paths,
    new_marker,
    parse_marker,
    plan_launch,
)
from enginerouter.engines.proctree import held_in_rollup
from enginerouter.slots import SlotId

SLOT = SlotId("llama")


def plan(port: int = 4000, **settings: object) -> Launch:
    whole = {"name": "llama", "start_cmd": ("llama-server", "--port", "{port}")} | settings
    return plan_launch(GenericProcess(**whole), SLOT, Path("/etc/er"), port)  # type: ignore[arg-type]


def test_the_port_is_filled_in_everywhere() -> None:
    launch = plan(env={"PORT": "{port}"}, stop_cmd=("stop", "{port}"))
    assert launch.argv == ("llama-server", "--port", "4000")
    assert launch.env == {"PORT": "4000"}
    assert launch.stop_argv == ("stop", "4000")
    assert launch.address == "http://127.0.0.1:4000"
    assert launch.ready.url == "http://127.0.0.1:4000/health"


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://127.0.0.1:8080/", "127.0.0.1", 8080),
        ("http://localhost", "localhost", 80),
        ("https://box/x", "box", 443),
        ("http://[::1]:90", "::1", 90),
    ],
)
def test_the_address_of_the_settings_wins(url: str, host: str, port: int) -> None:
    launch = plan(base_url=url)
    assert (launch.host, launch.port) == (host, port)
    assert launch.address == url.rstrip("/")


def test_paths_count_from_the_folder_of_the_configuration() -> None:
    launch = plan(cwd=Path("work"), log_file=Path("my.log"))
    assert launch.cwd == Path("/etc/er/work")
    assert launch.log_path == Path("/etc/er/my.log")
    assert plan().log_path == Path("/etc/er/logs/engines/llama.log")


def test_what_is_launched_makes_the_digest_and_nothing_else_does() -> None:
    same = plan(start_timeout_s=1.0, ready_path="/ready", api_key="k")
    assert same.digest == plan().digest
    for other in (plan(port=4001), plan(env={"A": "1"}), plan(cwd=Path("/tmp")), plan(start_cmd=("x",))):
        assert other.digest != plan().digest


def test_a_home_folder_is_filled_in_as_a_shell_would() -> None:
    assert plan(start_cmd=("~/bin/x", "a~/b")).argv == (os.path.expanduser("~/bin/x"), "a~/b")


def test_the_environment_of_a_child_says_nothing_that_systemd_told_us() -> None:
    outer = {"PATH": "/bin", "NOTIFY_SOCKET": "x", "WATCHDOG_USEC": "1", "LISTEN_FDNAMES": "y", "A": "old"}
    env = child_environment(outer, plan(env={"A": "new"}), "mark")
    assert env == {"PATH": "/bin", "A": "new", "ENGINEROUTER_LAUNCH": "mark"}
    # A router that an enginerouter launched does not hand on where it comes from.
    assert "ENGINEROUTER_LAUNCH" not in child_environment({"ENGINEROUTER_LAUNCH": "outer"}, plan(), None)


def test_a_marker_is_read_back_whatever_the_model_is_called() -> None:
    marker = new_marker("abc", SlotId("llama", "org/a:b"))
    assert parse_marker(str(marker)) == marker
    for text in ("", "a", "a:b", ":b:c", "a:b:"):
        assert parse_marker(text) is None


def test_model_files_are_those_that_are_clearly_paths_of_this_machine() -> None:
    command = ("llama-server", "-m", "/m/a.gguf", "--mmproj=b.GGUF", "--model", "org/name", "-m")
    assert model_paths(command) == ["/m/a.gguf", "b.GGUF"]
    assert model_paths(("docker", "run", "img", "-m", "/in/the/container.gguf")) == []
    assert model_paths(("/usr/bin/ssh", "box", "llama-server", "-m", "/there.gguf")) == []


def test_slots_have_file_names_of_their_own() -> None:
    assert file_name(SlotId("llama")) == "llama"
    odd = [SlotId("a", "b"), SlotId("a_b"), SlotId("a", "../b"), SlotId("a", "b?"), SlotId("..")]
    names = [file_name(slot) for slot in odd]
    assert len(set(names)) == len(odd)
    assert not any("/" in name or name.startswith(".") for name in names)


def test_held_memory_is_what_its_end_gives_back() -> None:
    rollup = "Rss: 9000 kB\nPss_Anon: 100 kB\nPss_Shmem: 20 kB\nPss_File: 5000 kB\nLocked: {} kB\n"
    assert held_in_rollup(rollup.format(0)) == 120 * 1024  # a mapped model costs no availability
    assert held_in_rollup(rollup.format(3120)) == (120 + 3000) * 1024  # a locked one does
    assert held_in_rollup(rollup.format(99999)) == (120 + 5000) * 1024
    assert held_in_rollup("") == 0
