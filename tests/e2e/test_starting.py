"""What is said when the router itself cannot start: the port, or the state file, is another's."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from enginerouter.cli.main import EXIT_PORT, EXIT_REFUSED, main
from enginerouter.config.load import load
from enginerouter.errors import AlreadyRunning, CannotListen
from enginerouter.state import StateFile
from enginerouter.web import app


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield int(holder.getsockname()[1])


def written(folder: Path, port: int, host: str = "127.0.0.1") -> list[str]:
    engine = {"type": "generic_process", "start_cmd": ["x", "{port}"]}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"host": host, "port": port, "log_file": None, "engines": {"a": engine}}))
    return ["--config", str(path)]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line on stderr; before it stand log lines."""
    return capsys.readouterr().err.splitlines()[-1]


def test_a_taken_port_is_named_once_with_its_holder(
    tmp_path: Path, taken_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(written(tmp_path, taken_port)) == EXIT_PORT
    message = said(capsys)
    assert message.startswith(f"cannot listen on 127.0.0.1:{taken_port}: process {os.getpid()} (")
    assert message.count("127.0.0.1") == 1
    assert "listens there; stop what uses the port, or set another `port`" in message


def test_an_address_that_is_not_ours_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(written(tmp_path, 18077, host="192.0.2.1")) == EXIT_PORT
    message = said(capsys)
    assert message.startswith("cannot listen on 192.0.2.1:18077: Cannot assign requested address; ")
    assert message.count("192.0.2.1") == 1


async def test_a_second_router_on_the_same_config_hears_of_the_state_file_and_the_port(
    tmp_path: Path, taken_port: int
) -> None:
    config = load(Path(written(tmp_path, taken_port)[1])).config
    running = StateFile(config.base_dir / config.state_file)
    running.lock()
    try:
        with pytest.raises(AlreadyRunning) as caught:
            await app.Router(config).start()
    finally:
        await running.close()
    message = str(caught.value)
    assert message.startswith(f"another router is running with the state file {running.path}, and process ")
    assert f"listens on 127.0.0.1:{taken_port}; stop it, or give this one a `state_file` and a `port` of" in message


def test_no_advice_to_check_the_file_is_given_where_the_file_is_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = written(tmp_path, 0)
    config = load(Path(arguments[1])).config
    running = StateFile(config.base_dir / config.state_file)
    running.lock()
    assert main(arguments) == EXIT_REFUSED
    message = said(capsys)
    assert message.startswith("another router is running with the state file")
    assert "enginerouter check" not in message
    assert " listens on " not in message


def test_only_the_bind_error_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(app, "tls_context", broken)
    with pytest.raises(OSError, match="No space left"):
        main(written(tmp_path, 0))


def test_the_error_carries_host_and_port() -> None:
    error = CannotListen("localhost", 80, "Permission denied")
    assert (error.host, error.port) == ("localhost", 80)
