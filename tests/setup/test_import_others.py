"""A gateway's aliases.yaml and a manifest of profiles become ours; what a file is, is seen; the command's manners."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from enginerouter.cli.main import main
from enginerouter.config.load import load, load_text
from enginerouter.config.model import Config, GenericProcess
from enginerouter.errors import ConfigError
from enginerouter.setup.importing import Result, import_file

GATEWAY = """
aliases:
  house/fast:
    description: "Short answers"
    chain:
      - ollama/qwen2.5:7b
      - groq/llama-3.1-8b-instant
      - openrouter/anthropic/claude-3-haiku
  house/vision:
    chain: [ollama/llava:7b, google/gemini-2.0-flash, gemma3:12b]
  house/any:
    chain: [house/fast, shed/model]
default: house/fast
"""
MANIFEST = """
qwen:
  model_path: models/qwen.gguf
  display_name: Qwen
  flags: {ctx-size: 8192, flash-attn: on, no-warmup: null, override-kv: [a, b]}
  colour: red
small: {model: /abs/small.gguf}
"""
SWAP = "models: {a: {cmd: 'server --port ${PORT}'}}"


def imported(tmp_path: Path, text: str, name: str = "file.yaml") -> Result:
    file = tmp_path / name
    file.write_text(text)
    return import_file(file, tmp_path / "config.yaml", environ={})


def config_of(result: Result, tmp_path: Path) -> Config:
    return load_text(result.text, base_dir=tmp_path, environ={}).config


def test_a_gateways_chains_stay_and_its_providers_become_engines(tmp_path: Path) -> None:
    result = imported(tmp_path, GATEWAY)
    config = config_of(result, tmp_path)
    assert result.kind == "gateway"
    assert config.default_model == "house/fast"
    assert config.aliases["house/fast"].chain == (
        "ollama/qwen2.5:7b", "groq/llama-3.1-8b-instant", "openrouter/anthropic/claude-3-haiku",
    )  # fmt: skip
    assert config.aliases["house/fast"].description == "Short answers"
    # A bare model goes to Ollama there.
    assert config.aliases["house/vision"].chain[2] == "ollama/gemma3:12b"
    assert config.aliases["house/any"].chain == ("house/fast", "shed/model")
    kinds = {name: (e.type, e.unconfigured) for name, e in config.engines.items()}
    assert kinds == {
        "ollama": ("ollama", False),
        "groq": ("remote", True),
        "openrouter": ("remote", True),
        "google": ("remote", True),
        "shed": ("remote", False),
    }
    assert config.engines["groq"].api_key_env == "GROQ_API_KEY"
    assert result.notes == ("engines.shed.base_url is to be filled in: the gateway's file does not say where it is",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("aliases: {a: {chain: []}}", "aliases.a.chain: names no target"),
        ("aliases: {a: {chain: [x/y]}}\ndefault: b", "default: there is no alias 'b'"),
        ("aliases: {x/y: {chain: [x/y2]}}", "aliases: an alias begins with 'x/', which is also a provider"),
        ("aliases: {a: {chain: [b]}, b: {chain: [a]}}", "aliases.a: the chain goes in a circle: a → b → a"),
        ("aliases: {a: {chain: [{x: y}]}}", "aliases.a.chain: must be a list of text"),
    ],
)
def test_a_gateways_file_that_is_wrong_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        imported(tmp_path, text)
    assert problem in [f"{p.path}: {p.message}" for p in caught.value.problems]


@pytest.mark.parametrize("text", [MANIFEST, "profiles:" + MANIFEST.replace("\n", "\n  ")])
def test_a_manifest_becomes_an_engine_with_its_profiles(tmp_path: Path, text: str) -> None:
    result = imported(tmp_path, text)
    assert result.kind == "manifest"
    engine = config_of(result, tmp_path).engines["llamacpp"]
    assert isinstance(engine, GenericProcess)
    assert engine.profiles["qwen"].model == tmp_path / "models/qwen.gguf"
    assert engine.profiles["qwen"].name == "Qwen"
    assert engine.profiles["qwen"].flags == {
        "ctx-size": "8192", "flash-attn": "on", "no-warmup": None, "override-kv": ("a", "b"),
    }  # fmt: skip
    assert engine.profiles["small"].model == Path("/abs/small.gguf")
    assert engine.start_cmd[-1] == "{flags}"
    assert [note.partition(" ")[0].removeprefix("profiles.") for note in result.notes] == ["qwen.colour"]


def test_a_manifest_in_json_is_one_too(tmp_path: Path) -> None:
    result = imported(tmp_path, json.dumps({"a": {"model": "a.gguf"}}), "manifest.json")
    assert result.kind == "manifest"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("engines: {a: {type: ollama}}", "this is a configuration of enginerouter already"),
        ("just: this", "this is not a llama-swap configuration"),
        ("- a\n- b", "the file must be a mapping"),
        ("", "the file must be a mapping"),
        ("a: [", "not valid YAML"),
        ("a: !!python/object:os.system x", "not valid YAML"),
        ("a: " + "[" * 60 + "]" * 60, "nested too deeply"),
        ("a: &a [" + "x, " * 500 + "]\nb: &b [" + "*a, " * 500 + "]\n", "more than 100000 values"),
        ("x" * (1 << 20) + "x", "larger than 1 MiB"),
        ("\0", "not valid YAML"),
    ],
)  # fmt: skip
def test_what_is_none_of_them_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(text)
    assert main(["import", str(file)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1


def test_a_file_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(tmp_path / "none.yaml")]) == 1
    assert "there is no such file" in capsys.readouterr().err


def test_the_result_is_printed_and_the_notes_are_not_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "swap.yaml"
    file.write_text(SWAP.replace("}}", ", unlisted: true}}"))
    assert main(["import", str(file)]) == 0
    out, err = capsys.readouterr()
    assert load_text(out, base_dir=tmp_path).config.engines
    assert err.splitlines()[0] == "note: models.a.unlisted has no equal: every model is listed"
    assert err.splitlines()[-1] == f"imported {file} (llama-swap): 1 engine"


def test_a_file_is_written_for_its_owner_and_never_over_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, target = tmp_path / "swap.yaml", tmp_path / "new" / "config.yaml"
    file.write_text(SWAP)
    assert main(["import", str(file), "-o", str(target)]) == 0
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert f"serve it with: enginerouter --config {target}" in capsys.readouterr().err
    assert load(target).config.engines.keys() == {"a"}
    target.write_text("mine")
    assert main(["import", str(file), "-o", str(target)]) == 1
    assert target.read_text() == "mine"
    assert "--force" in capsys.readouterr().err
    assert main(["import", str(file), "-o", str(target), "--force"]) == 0
    assert load(target).config.engines.keys() == {"a"}
    assert [p.name for p in target.parent.iterdir()] == ["config.yaml"]


def test_the_outcome_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "swap.yaml"
    file.write_text(SWAP.replace("server", "${env.BIN}"))
    assert main(["import", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["engines"], told["variables"], told["written"]) == ("llama-swap", ["a"], ["BIN"], None)
    assert load_text(told["config"], base_dir=tmp_path, environ={"BIN": "x"}).config.engines


def test_wrong_usage_ends_with_2() -> None:
    for words in (["import"], ["import", "x", "--from", "elsewhere"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2


def test_a_pipe_is_never_asked(tmp_path: Path) -> None:
    file, target = tmp_path / "swap.yaml", tmp_path / "config.yaml"
    file.write_text(SWAP)
    target.write_text("mine")
    argv = [sys.executable, "-m", "enginerouter", "import", str(file), "-o", str(target)]
    ended = subprocess.run(argv, input="y\n", capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert target.read_text() == "mine"
