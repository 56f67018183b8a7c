"""install.sh as a new user meets it: what it says, and that a second run has nothing to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def run(*arguments: str, script: Path = REPOSITORY / "install.sh", **variables: str) -> tuple[int, str, str]:
    environment = {
        k: v for k, v in os.environ.items() if k not in ("PYTHON", "PYTHONPATH", "ENGINEROUTER_VENV")
    } | variables
    argv = ["bash", str(script), *arguments]
    ended = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return ended.returncode, ended.stdout, ended.stderr


def stub(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_without_arguments_it_explains_itself_and_ends_with_2() -> None:
    status, out, err = run()
    assert (status, out) == (2, "")
    assert err.startswith("usage: ./install.sh --demo")


def test_help_is_on_stdout_and_ends_with_0() -> None:
    status, out, err = run("--help")
    assert (status, err) == (0, "")
    assert "--demo" in out
    assert "ENGINEROUTER_VENV" in out


def test_another_flag_is_told_that_the_full_installer_comes_later() -> None:
    status, _, err = run("--uninstall")
    assert status == 2
    assert "'--uninstall' is not known yet" in err
    assert "comes later" in err


def test_without_a_new_enough_python_it_says_what_to_install(tmp_path: Path) -> None:
    for name in ("python3.14", "python3.13", "python3.12", "python3.11", "python3"):
        stub(tmp_path, name, "exit 1")  # an old one, and a pyenv shim without its version, both end so
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    status, _, err = run("--demo", PATH=path, ENGINEROUTER_VENV=str(tmp_path / "venv"))
    assert status == 1
    assert "Python 3.11 or newer is needed" in err
    assert "apt install python3" in err


def test_a_python_that_cannot_make_an_environment_is_told_the_package(tmp_path: Path) -> None:
    stub(
        tmp_path,
        "fake",
        f'case "$*" in *venv*) echo "ensurepip is not available"; exit 1;; esac; exec "{sys.executable}" "$@"',
    )
    venv = tmp_path / "venv"
    status, _, err = run("--demo", PYTHON=str(tmp_path / "fake"), ENGINEROUTER_VENV=str(venv))
    assert status == 1
    assert "ensurepip is not available" in err
    assert f"apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv" in err
    assert not venv.exists()


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    status, _, err = run("--demo", ENGINEROUTER_VENV=str(tmp_path))
    assert status == 1
    assert "is no working virtual environment" in err
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.slow
def test_the_demo_runs_from_a_folder_with_spaces_and_installs_once(tmp_path: Path) -> None:
    """Needs a package index."""
    checkout = tmp_path / "my check out"
    checkout.mkdir()
    for name in ("install.sh", "pyproject.toml", "README.md", "LICENSE"):
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, checkout)
    shutil.copytree(REPOSITORY / "src", checkout / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    status, out, err = run("--demo", "--help", script=checkout / "install.sh")
    assert status == 0, err
    assert "usage: enginerouter demo" in out
    assert "installing enginerouter into" in err
    status, out, err = run("--demo", "--help", script=checkout / "install.sh")
    assert (status, err) == (0, "")
    assert "usage: enginerouter demo" in out
