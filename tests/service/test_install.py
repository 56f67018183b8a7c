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


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder of a user, with a space and a percent sign in its name."""
    path = tmp_path / "ho me"
    path.mkdir()
    return path


def stub(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_help_is_on_stdout_and_ends_with_0() -> None:
    status, out, err = run("--help")
    assert (status, err) == (0, "")
    assert "--demo" in out
    assert "ENGINEROUTER_VENV" in out


def test_an_unknown_option_ends_with_2_and_changes_nothing(tmp_path: Path) -> None:
    status, out, err = run("--unistall", HOME=str(tmp_path))
    assert (status, out) == (2, "")
    assert err.startswith("install.sh: '--unistall' is not an option\n\nusage: ")
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_names_every_step_and_takes_none(home: Path) -> None:
    status, out, err = run("--dry-run", HOME=str(home))
    assert (status, out) == (0, "")
    for step in ("making a virtual environment", "pip install --upgrade", "ln -sfn", " init --config "):
        assert step in err
    assert list(home.iterdir()) == []


def test_the_unit_is_printed_before_anything_is_installed(home: Path) -> None:
    status, out, err = run("--print-unit", HOME=str(home))
    assert (status, err) == (0, "")
    assert f'serve --config "{home}/.config/enginerouter/config.yaml"' in out
    assert list(home.iterdir()) == []


def test_uninstalling_removes_only_what_bears_our_mark(home: Path) -> None:
    venv, unit, links = home / "venv", home / "units/enginerouter.service", home / "bin"
    (venv / "bin").mkdir(parents=True)
    (venv / "pyvenv.cfg").write_text("home = /usr/bin\n")
    unit.parent.mkdir()
    unit.write_text("[Service]\nExecStart=/usr/bin/true\n")
    links.mkdir()
    (links / "enginerouter").symlink_to("/opt/another/enginerouter")
    (links / "routerctl").write_text("#!/bin/sh\n")
    status, _, err = run("--uninstall", **places(home))
    assert status == 0
    for kept in (venv, unit, links / "enginerouter", links / "routerctl"):
        assert kept.exists() or kept.is_symlink()
        assert f"'{kept}'" in err


@pytest.mark.parametrize("neighbour", ["", "mine"])
def test_uninstalling_leaves_no_empty_folder_of_ours_and_every_other(home: Path, neighbour: str) -> None:
    """Where the environment is in its usual place, the folder around it is ours."""
    ours = home / ".local/share/enginerouter"
    (ours / "venv").mkdir(parents=True)
    (ours / "venv/pyvenv.cfg").write_text("home = /usr/bin\n")
    (ours / "venv/.enginerouter-installed").touch()
    if neighbour:
        (ours / neighbour).touch()
    for words in (("--dry-run",), (), ()):  # nothing is left to remove, which is no error
        status, _, err = run("--uninstall", *words, HOME=str(home), XDG_DATA_HOME="", XDG_CONFIG_HOME="")
        assert status == 0, err
        assert (ours / "venv").exists() == bool(words)
    assert ours.exists() == bool(neighbour)
    assert ours.parent.exists()
    named = home / "named"
    (named / "venv").mkdir(parents=True)
    (named / "venv/pyvenv.cfg").write_text("home = /usr/bin\n")
    (named / "venv/.enginerouter-installed").touch()
    assert run("--uninstall", **{**places(home), "ENGINEROUTER_VENV": str(named / "venv")})[0] == 0
    assert list(named.iterdir()) == []


def places(home: Path) -> dict[str, str]:
    return {
        "HOME": str(home),
        "ENGINEROUTER_VENV": str(home / "venv"),
        "ENGINEROUTER_BIN": str(home / "bin"),
        "ENGINEROUTER_UNIT_DIR": str(home / "units"),
        "ENGINEROUTER_CONFIG": str(home / "conf/config.yaml"),
    }


@pytest.mark.slow
def test_installing_twice_and_uninstalling_leaves_only_the_configuration(home: Path) -> None:
    """Needs a package index. Without a terminal it asks nothing."""
    variables = places(home)
    for _ in range(2):
        status, _, err = run("--no-service", **variables)
        assert status == 0, err
        assert "done: enginerouter " in err
        config = home / "conf/config.yaml"
        assert subprocess.run([home / "bin/enginerouter", "check", "-c", config], check=False).returncode == 0
        config.write_text(config.read_text() + "# mine\n")
    assert config.read_text().endswith("# mine\n# mine\n"), "the configuration is kept"
    status, _, err = run("--uninstall", **variables)
    assert status == 0, err
    # Tools that pip looks for may have left folders of their own in this home.
    left = {p.name for p in home.iterdir() if not p.name.startswith(".")}
    assert left == {"bin", "conf"}
    assert list((home / "bin").iterdir()) == []
    assert f"stay in '{home}/conf'" in err


def an_environment_of_somebody_else(venv: Path) -> Path:
    """Whose Python is new enough, and whose pip installs our commands."""
    (venv / "bin").mkdir(parents=True)
    (venv / "pyvenv.cfg").write_text("home = /usr/bin\n")
    commands = (
        f'for c in enginerouter routerctl; do printf "#!/bin/sh\\n" >"{venv}/bin/$c"; chmod +x "{venv}/bin/$c"; done'
    )
    stub(venv / "bin", "python", f'case "$*" in *install*) {commands};; esac')
    return venv


def test_an_environment_of_somebody_else_is_used_and_outlives_us(home: Path) -> None:
    venv = an_environment_of_somebody_else(home / "venv")
    status, _, err = run("--yes", "--no-service", **places(home))
    assert status == 0, err
    assert f"'{venv}' was not made by this script; it is used" in err
    assert (home / "bin/enginerouter").is_symlink()
    status, _, err = run("--uninstall", "--yes", **places(home))
    assert status == 0, err
    assert (venv / "pyvenv.cfg").exists()
    assert not (home / "bin/enginerouter").is_symlink()


def test_a_link_of_somebody_else_is_left_alone(home: Path) -> None:
    """As pipx makes them. One that leads nowhere serves nobody, and is replaced."""
    an_environment_of_somebody_else(home / "venv")
    theirs = an_environment_of_somebody_else(home / "pipx") / "bin/python"
    (home / "bin").mkdir()
    (home / "bin/enginerouter").symlink_to(theirs)
    (home / "bin/routerctl").symlink_to(home / "gone/bin/routerctl")
    status, _, err = run("--yes", "--no-service", **places(home))
    assert status == 0, err
    assert f"'{home}/bin/enginerouter' is somebody else's" in err
    assert (home / "bin/enginerouter").readlink() == theirs
    assert (home / "bin/routerctl").readlink() == home / "venv/bin/routerctl"


def test_through_a_pipe_nothing_is_fetched_by_its_name_alone(home: Path) -> None:
    script = (REPOSITORY / "install.sh").read_bytes()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ENGINEROUTER_")} | {"HOME": str(home)}
    ended = subprocess.run(["bash"], input=script, env=environment, capture_output=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert b"set ENGINEROUTER_SOURCE" in ended.stderr
    assert list(home.iterdir()) == []


def test_a_dry_run_leaves_an_empty_folder_where_it_is(home: Path) -> None:
    (home / "venv").mkdir()
    status, _, err = run("--dry-run", **places(home))
    assert status == 0, err
    assert [p.name for p in home.iterdir()] == ["venv"]


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
