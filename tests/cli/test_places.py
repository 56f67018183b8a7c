"""Which configuration a command means where none was named."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginerouter.cli.main import main

ENGINES = "engines: {%s: {type: remote, base_url: http://127.0.0.1:9}}\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, and an empty home."""
    monkeypatch.delenv("ENGINEROUTER_CONFIG", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    found = tmp_path / "home"
    monkeypatch.setenv("HOME", str(found))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return found


@pytest.fixture
def installed(home: Path) -> Path:
    path = home / ".config/enginerouter/config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(ENGINES % "installed")
    return path


def test_check_reads_what_the_installer_wrote_and_says_so(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    said = capsys.readouterr()
    assert "engines: [installed]" in said.out
    assert f"configuration: {installed}" in said.err


@pytest.mark.usefixtures("installed")
def test_a_configuration_here_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.yaml").write_text(ENGINES % "here")
    assert main(["check"]) == 0
    said = capsys.readouterr()
    assert "engines: [here]" in said.out
    assert "configuration:" not in said.err


@pytest.mark.usefixtures("installed")
def test_the_environment_names_one_for_certain(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENGINEROUTER_CONFIG", "elsewhere.yaml")
    assert main(["check"]) == 1
    assert "elsewhere.yaml" in capsys.readouterr().err


def test_init_writes_here_whatever_is_installed(installed: Path) -> None:
    before = installed.read_text()
    assert main(["init", "--preset", "llamacpp"]) == 0
    assert Path("config.yaml").exists()
    assert installed.read_text() == before


def test_where_there_is_none_the_one_here_is_missed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 1
    assert "config.yaml: there is no such file" in capsys.readouterr().err
