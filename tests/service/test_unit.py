"""The unit file: what systemd would do with it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from enginerouter.cli.main import main
from enginerouter.service.unit import Service, service_text, socket_text

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def unit(tmp_path: Path, capsys: pytest.CaptureFixture[str], **settings: object) -> dict[str, str]:
    """What `enginerouter unit` prints for a configuration, by key."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    assert main(["unit", "--config", str(config)]) == 0
    lines = (line.split("=", 1) for line in capsys.readouterr().out.splitlines() if "=" in line and line[0] != "#")
    return dict(lines)


def engine(**more: object) -> dict[str, object]:
    return {"type": "generic_process", "start_cmd": ["true", "{port}"], **more}


@pytest.mark.parametrize(
    ("one", "stop_s"),
    [
        ({"type": "ollama"}, 30 + 20),
        ({"type": "ollama", "unload_timeout_s": 5}, 5 + 20),
        ({"type": "api_swap", "base_url": "http://127.0.0.1:5000", "stop_timeout_s": 7}, 7 + 20),
        ({"type": "systemd_unit", "unit": "x", "base_url": "http://127.0.0.1:1"}, 30 + 10 + 20),
        (engine(), 30 + 10 + 20),
        (engine(start_cmd=["llama", "--slot-save-path", "x", "{port}"], keep_slots=True), 30 + 10 + 10 + 20),
        (engine(start_cmd=["docker", "run", "{port}"], stop_cmd=["docker", "stop", "-t", "60", "x"]), 65 + 15 + 20),
        ({"type": "remote", "base_url": "https://x.example/v1"}, 20),
        (engine(stop_timeout_s=900, enabled=False), 20),
    ],
)
def test_the_stop_time_holds_what_each_kind_of_engine_can_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], one: dict[str, object], stop_s: int
) -> None:
    assert unit(tmp_path, capsys, engines={"a": one})["TimeoutStopSec"] == str(stop_s)


def test_the_stop_time_holds_streams_the_slowest_engine_and_ten_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = {"a": engine(stop_timeout_s=90), "b": engine()}
    found = unit(tmp_path, capsys, shutdown_timeout_s=25, engines=engines)
    assert found["TimeoutStopSec"] == "135"
    assert found["KillMode"] == "mixed"
    assert found["OOMPolicy"] == "continue"


def test_with_on_exit_keep_systemd_leaves_the_engines_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unit(tmp_path, capsys, on_exit="keep", engines={"a": engine()})["KillMode"] == "process"


def test_odd_paths_are_taken_literally() -> None:
    text = service_text(Service(Path('/o "dd"/50%/er'), Path("/c $HOME/a\\b/config.yaml"), 50))
    assert r'ExecStart="/o \"dd\"/50%%/er" serve --config "/c $$HOME/a\\b/config.yaml"' in text
    assert "EnvironmentFile=-/c $HOME/a\\b/env\n" in text


@pytest.mark.parametrize(("version", "kind"), [(252, "Type=notify\nExecReload="), (255, "Type=notify-reload\n")])
def test_an_older_systemd_gets_the_older_type(version: int, kind: str) -> None:
    assert kind in service_text(Service(Path("/er"), Path("/c.yaml"), 50, systemd_version=version))


def test_an_ipv6_host_is_bracketed() -> None:
    assert "ListenStream=[::1]:8077\n" in socket_text("::1", 8077)
    assert "ListenStream=127.0.0.1:8077\n" in socket_text("127.0.0.1", 8077)


def test_a_broken_configuration_has_no_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("engines: 3")
    assert main(["unit", "--config", str(tmp_path / "config.yaml")]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "config error" in said.err


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    (folder / "er").write_text("#!/bin/sh\n")
    (folder / "er").chmod(0o755)
    text = service_text(Service(folder / "er", folder / "config.yaml", 50, path="/usr/bin:/bin", systemd_version=252))
    file = tmp_path / "enginerouter.service"
    file.write_text(text)
    (tmp_path / "enginerouter.socket").write_text(socket_text("127.0.0.1", 8077))
    said = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(file), str(tmp_path / "enginerouter.socket")],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)},
        check=False,
    )
    ours = [line for line in said.stderr.splitlines() if "enginerouter" in line]
    assert ours == [], said.stderr


@pytest.mark.parametrize("kind", ["service", "socket"])
def test_the_units_in_deploy_are_those_that_are_printed_for_the_example(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the paths of somebody's home in place of ours."""
    monkeypatch.setenv("PATH", "/usr/local/bin:/usr/bin:/bin")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "enginerouter").touch()
    config = tmp_path / "config.yaml"
    config.write_text((DEPLOY.parent / "config.example.yaml").read_text())
    assert main(["unit", "--config", str(config), *(["--socket"] if kind == "socket" else [])]) == 0
    text = capsys.readouterr().out.replace(f"{tmp_path}/enginerouter", "/home/you/.local/bin/enginerouter")
    text = text.replace(str(tmp_path), "/home/you/.config/enginerouter")
    (tmp_path / kind).write_text(text)
    kept = DEPLOY / f"systemd/enginerouter.{kind}"
    assert kept.read_text() == text, f"cp {tmp_path / kind} {kept}"
