"""Every preset is a configuration that loads as it is, alone and beside others, from a checkout and from a wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from itertools import combinations
from pathlib import Path

import pytest

from enginerouter.config.load import Loaded, load_text
from enginerouter.config.model import ApiSwap, GenericProcess, Remote
from enginerouter.errors import ConfigError
from enginerouter.setup import presets

ROOT = Path(__file__).resolve().parents[2]
NAMES = (
    "enginerouter", "gemini", "groq", "koboldcpp", "llamacpp", "lmstudio", "localai", "max", "mlx", "ollama",
    "openrouter", "ramalama", "sglang", "tabbyapi", "together", "vllm",
)  # fmt: skip
BASES = {
    "ollama": "http://127.0.0.1:11434",
    "lmstudio": "http://127.0.0.1:1234",
    "tabbyapi": "http://127.0.0.1:5000",
    "localai": "http://127.0.0.1:8080",
    "openrouter": "https://openrouter.ai/api/v1",
    "groq": "https://api.groq.com/openai/v1",
    "together": "https://api.together.xyz/v1",
    "gemini": "https://generativelanguage.googleapis.com/v1beta/openai",
}


def loaded(text: str) -> Loaded:
    return load_text(text, base_dir=Path("/tmp"), environ={})


def test_these_are_the_presets() -> None:
    assert tuple(presets.names()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_loads_without_a_word_and_without_variables(name: str) -> None:
    found = loaded(presets.text_of(name))
    assert [str(w) for w in found.warnings] == []
    assert len(found.config.engines) == 1
    for engine in found.config.engines.values():
        if isinstance(engine, GenericProcess):
            # A free port is chosen, and said to the engine.
            assert engine.base_url is None
            assert any("{port}" in word for word in engine.start_cmd)
        elif name in BASES:
            assert engine.base_url == BASES[name]
        if isinstance(engine, ApiSwap):
            assert engine.discover_models
            assert engine.load_path
            assert engine.unload_path
            assert engine.loaded_path
        if isinstance(engine, Remote) and name in BASES:
            assert engine.unconfigured, "chains pass it over until its key is there"


@pytest.mark.parametrize("name", [n for n in NAMES if n in ("vllm", "max")])
def test_what_a_preset_waits_for_is_what_it_starts(name: str) -> None:
    config = loaded(presets.text_of(name)).config
    (engine,) = config.engines.values()
    assert isinstance(engine, GenericProcess)
    served = engine.start_cmd[engine.start_cmd.index("--served-model-name") + 1]
    assert engine.ready_check == f"model:{served}"
    assert [m.id for m in config.models] == [served]


def test_any_two_presets_load_together() -> None:
    for two in combinations(NAMES, 2):
        found = loaded(presets.combined(two))
        assert list(found.config.engines) == [n if n != "enginerouter" else "other-box" for n in two]
        assert found.warnings == ()


def test_all_presets_load_together_with_their_comments() -> None:
    text = presets.combined(NAMES)
    assert len(loaded(text).config.engines) == len(NAMES)
    for name in NAMES:
        for line in presets.text_of(name).splitlines():
            assert line.strip() in text or line.rstrip(": ") in ("engines", "models")


def test_a_preset_that_there_is_not_names_the_one_that_is_meant() -> None:
    with pytest.raises(ConfigError) as caught:
        presets.text_of("lamacpp")
    assert str(caught.value.problems[0]) == "there is no preset 'lamacpp' – did you mean 'llamacpp'?"
    with pytest.raises(ConfigError, match="known: enginerouter, gemini"):
        presets.text_of("../../../etc/passwd")


@pytest.mark.parametrize("name", NAMES)
def test_the_traps_of_every_preset_are_told(name: str) -> None:
    assert f"**{name}**" in (ROOT / "presets" / "README.md").read_text()


@pytest.mark.slow
def test_a_wheel_carries_the_presets(tmp_path: Path) -> None:
    # A build leaves its folders behind, and would find those of an earlier one.
    source = tmp_path / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    shutil.copytree(ROOT / "presets", source / "presets")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "config.example.yaml"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--disable-pip-version-check"]
    built = subprocess.run(
        [*pip, "--wheel-dir", str(tmp_path), str(source)], capture_output=True, text=True, timeout=300, check=False
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # Read by the package itself, far from the checkout.
    ask = (
        "from enginerouter.setup import presets\n"
        "print(presets.__file__, *presets.names())\n"
        "presets.text_of('vllm'), presets.example()\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", ask], cwd=tmp_path, env={"PYTHONPATH": str(site)}, capture_output=True, text=True,
        timeout=60, check=True,
    ).stdout.split()  # fmt: skip
    assert said[0].startswith(str(site))
    assert tuple(said[1:]) == NAMES
