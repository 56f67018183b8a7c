"""A listening socket that somebody else opened: a process of its own takes it as systemd hands it over."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from enginerouter.service.sockets import given_socket

SOURCE = Path(__file__).resolve().parents[2] / "src"
# Becomes fd 3, and says which process it is meant for only once it is that process.
TAKES = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
from enginerouter.errors import ConfigError
from enginerouter.service.sockets import given_socket
try:
    sock = given_socket()
    print(sock.getsockname()[1], os.get_inheritable(sock.fileno()))
except ConfigError as error:
    print(error)
"""


def take(fd: int, count: str = "1") -> str:
    def enter() -> None:
        os.dup2(fd, 3)

    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "LISTEN_FDS": count}
    return subprocess.run(
        [sys.executable, "-c", TAKES],
        env=environment,
        preexec_fn=enter,
        pass_fds=[3],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout.strip()


def test_a_handed_over_socket_is_taken_and_no_engine_inherits_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert take(server.fileno()) == f"{server.getsockname()[1]} False"


def test_two_sockets_are_refused_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "2 sockets; the router listens on one" in take(server.fileno(), "2")


def test_a_socket_that_does_not_listen_is_refused() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert "a socket that does not listen" in take(sock.fileno())


def test_a_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        assert "something that is no socket" in take(file.fileno())


@pytest.mark.parametrize(
    "variables", [{}, {"LISTEN_FDS": "1"}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_FDS": "0"}]
)
def test_what_is_meant_for_nobody_or_another_is_left(variables: dict[str, str]) -> None:
    assert given_socket(variables) is None
