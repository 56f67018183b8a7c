"""A process that runs, read so that it can be started again; and what it is not right to take for its command."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from enginerouter.setup import running
from enginerouter.setup.running import Running, front_of, program_of, read, running_at, unit_in
from enginerouter.setup.scan import tabby_keys

LISTENER = """
import os, socket, sys, time
s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen(); print(s.getsockname()[1], flush=True)
if "fork" in sys.argv and os.fork() == 0: print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A process with a folder and variables of its own; its port."""
    (tmp_path / "listener.py").write_text(LISTENER)
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "1", "HF_HOME": "/hf", "MY_SECRET": "x"}
    with subprocess.Popen(
        [sys.executable, "listener.py", "fork", "two words"], cwd=tmp_path, env=env,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        yield int(process.stdout.readline()), process
        process.kill()


def test_a_listener_is_read_as_it_was_started(listener: tuple[int, subprocess.Popen[str]], tmp_path: Path) -> None:
    port, process = listener
    assert process.stdout is not None
    process.stdout.readline()  # its child shares the socket now
    found = running_at("127.0.0.1", port)
    assert found is not None
    assert (found.pid, found.doubt) == (process.pid, "")
    assert found.argv == (sys.executable, "listener.py", "fork", "two words")
    assert found.cwd == tmp_path
    assert (found.env["CUDA_VISIBLE_DEVICES"], found.env["HF_HOME"]) == ("1", "/hf")
    assert "MY_SECRET" not in found.env
    assert "PATH" not in found.env


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert running_at("127.0.0.1", taken.getsockname()[1]) is None


def test_a_process_that_is_gone_is_a_doubt(listener: tuple[int, subprocess.Popen[str]]) -> None:
    _, process = listener
    process.kill()
    process.wait()
    assert "may not be read" in read(process.pid).doubt


def test_a_program_is_found_again_from_anywhere(tmp_path: Path) -> None:
    tool, venv = tmp_path / "tool", tmp_path / "venv"
    for file in (tool, venv):
        file.write_text("")
        file.chmod(0o755)
    here = str(tmp_path)
    # Not the executable behind the link: that would lose the virtual environment.
    assert program_of([str(venv)], "/usr/bin/python3.11", None, "") == (str(venv), "")
    assert program_of(["./tool"], "/else", tmp_path, "") == (str(tool), "")
    assert program_of(["tool"], "/else", None, here) == (str(tool), "")
    assert program_of(["tool"], str(tool), None, "/none") == (str(tool), "")


@pytest.mark.parametrize("argv", [[], [""], ["vllm: worker"], ["sglang::scheduler"], ["/gone/llama-server", "-m", "x"]])
def test_what_is_no_command_any_more_is_a_doubt(argv: list[str]) -> None:
    program, doubt = program_of(argv, sys.executable, None, "/none")
    assert program == ""
    assert doubt


UNITS = [
    ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/llama.service\n", ("llama.service", "user")),
    ("0::/system.slice/ollama.service\n", ("ollama.service", "system")),
    ("0::/system.slice/vllm.service/inner\n", ("vllm.service", "system")),
    ("12:memory:/other\n1:name=systemd:/system.slice/old.service\n", ("old.service", "system")),
    ("0::/user.slice/user-1000.slice/session-3.scope\n", ("", "system")),
    ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-kitty-1.scope\n", ("", "system")),
    ("0::/system.slice/docker-" + "a" * 64 + ".scope\n", ("", "system")),
    ("0::/\n", ("", "system")),
    ("", ("", "system")),
]


@pytest.mark.parametrize(("membership", "unit"), UNITS)
def test_the_unit_of_a_process(membership: str, unit: tuple[str, str]) -> None:
    assert unit_in(membership) == unit


def test_a_container_is_seen_in_the_control_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_membership", lambda pid: f"0::/system.slice/docker-{'ab' * 32}.scope\n")
    assert read(os.getpid()).container == "abababababab"


def test_of_processes_that_share_a_socket_the_first_counts() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert front_of({child.pid, os.getpid()}) == os.getpid()
        child.kill()


def test_keys_are_found_in_commands_and_hidden_from_people() -> None:
    command = ("server", "--api-key", "sk-1,sk-2", "--hf-token=abc", "--port", "1", "--admin-api-key", "x")
    process = Running(1, command)
    assert process.api_key == "sk-1"
    assert process.shown() == "server --api-key *** --hf-token=*** --port 1 --admin-api-key ***"
    assert Running(1, ("server", "--api-key=sk-1")).api_key == "sk-1"
    assert Running(1, ("server",), env={"VLLM_API_KEY": "sk-9"}).api_key == "sk-9"
    assert Running(1, ("server", "--api-key-file", "/keys")).shown() == "server --api-key-file /keys"


def test_tabbyapis_keys_are_read_from_its_folder(tmp_path: Path) -> None:
    assert tabby_keys(None) == tabby_keys(tmp_path) == ("", "")
    (tmp_path / "api_tokens.yml").write_text("api_key: abc\nadmin_key: def\n")
    assert tabby_keys(tmp_path) == ("abc", "def")
    (tmp_path / "api_tokens.yml").write_text("api_key: [x]\nadmin_key: !!python/object:x y\n")
    assert tabby_keys(tmp_path) == ("", "")
