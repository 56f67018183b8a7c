"""Profiles: inline and from a manifest, with flags as they were written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from enginerouter.config.engines import GenericProcess, Profile
from enginerouter.config.load import load_text
from enginerouter.errors import ConfigError

ENGINE = "engines:\n  a:\n    type: generic_process\n    start_cmd: 'x --port {port} -m {model} {flags}'\n"


def profiles(more: str, folder: Path = Path("/base")) -> dict[str, Profile]:
    config = load_text(ENGINE + more, base_dir=folder, environ={"SIZE": "0512"}).config
    engine = config.engines["a"]
    assert isinstance(engine, GenericProcess)
    return dict(engine.profiles)


def flags(text: str) -> dict[str, Any]:
    return dict(profiles(f"    profiles: {{p: {{model: m, flags: {text}}}}}")["p"].flags)


def warnings_of(start_cmd: str, more: str = "") -> list[tuple[str, str]]:
    text = f"engines:\n  a:\n    type: generic_process\n    start_cmd: {start_cmd}\n{more}"
    return [(w.message, w.hint) for w in load_text(text, base_dir=Path("/base"), environ={}).warnings]


def test_a_placeholder_that_nothing_fills_in_is_warned_of() -> None:
    profile = "    profiles: {p: {model: m}}"
    ((message, hint),) = warnings_of("'x {port} {model} {flag}'", profile)
    assert message == "'{flag}' stays as it is: there is no such placeholder"
    assert hint == "did you mean 'flags'?"
    ((message, _),) = warnings_of("'x {port} -m {model}'")
    assert message == "'{model}' stays as it is: only profiles fill it in"
    assert warnings_of("'x {port} {model} {id} {flags}'", profile) == []
    assert warnings_of("[sh, -c, 'exec x --port {port} $${model} {a} {role}']") == [], "a program may have its own"


@pytest.mark.parametrize(
    ("yaml", "value"),
    [
        ("8192", "8192"), ("0x20", "0x20"), ("1_000", "1_000"), ("0.50", "0.50"), ("1e3", "1e3"), ("'08'", "08"),
        ("on", "on"), ("off", "off"), ("yes", "on"), ("no", "off"), ("true", "on"), ("false", "off"),
        ("'true'", "true"), ("auto", "auto"), ("null", None), ("", None), ("2026-11-21", "2026-11-21"),
        ("${SIZE}", "0512"), ("[a, 1.0, on, null]", ("a", "1.0", "on", None)), ("[]", ()),
    ],
)  # fmt: skip
def test_a_flag_reaches_the_command_as_it_was_written(yaml: str, value: Any) -> None:
    text = f"    profiles:\n      p:\n        model: m\n        flags:\n          f: {yaml}"
    assert dict(profiles(text)["p"].flags) == {"f": value}


def test_a_model_path_counts_from_the_configuration() -> None:
    assert profiles("    profiles: {p: {model: models/x.gguf}}")["p"].model == Path("/base/models/x.gguf")


MANIFEST = """\
big:
  display_name: The big one
  model_path: weights/big.gguf
  flags: {ctx-size: 8192, flash-attn: on}
small:
  model: /elsewhere/small.gguf
"""


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_manifest_holds_profiles_whose_models_lie_beside_it(tmp_path: Path, is_wrapped: bool) -> None:
    (tmp_path / "m").mkdir()
    text = "profiles:\n" + "".join(f"  {line}\n" for line in MANIFEST.splitlines()) if is_wrapped else MANIFEST
    (tmp_path / "m" / "manifest.yaml").write_text(text)
    found = profiles("    manifest: m/manifest.yaml\n    profiles: {own: {model: o}}", tmp_path)
    assert list(found) == ["own", "big", "small"]
    assert found["big"].name == "The big one"
    assert found["big"].model == tmp_path / "m" / "weights" / "big.gguf"
    assert found["big"].flags == {"ctx-size": "8192", "flash-attn": "on"}
    assert found["small"].model == Path("/elsewhere/small.gguf")


def test_a_manifest_may_be_json(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{\n\t"p": {"model": "x", "flags": {"jinja": null, "a": true, "n": 1.50}}\n}')
    found = profiles("    manifest: m.json", tmp_path)
    assert found["p"].flags == {"jinja": None, "a": "on", "n": "1.50"}


def manifest_problems(folder: Path, text: str, more: str = "") -> list[str]:
    (folder / "m.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        profiles("    manifest: m.yaml\n" + more, folder)
    return [str(problem).replace(str(folder), "") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("p: {model: m}\nq:\n  modle: x\n", "/m.yaml:3", "unknown key"),
        ("p: {name: x}\n", "/m.yaml:1", "'model' is missing"),
        ("p:\n  model: m\n  flags:\n    a: {b: 1}\n", "/m.yaml:4", "must be text, a number"),
        ("p: {model: m}\np: {model: n}\n", "/m.yaml:2", "given twice"),
        ("p: {model: m, model_path: n}\n", "/m.yaml:1", "means the same as 'model'"),
        ("p: {model: $NO}\nq: {model: '${NO}'}\n", "/m.yaml:2", "NO is not set"),
        ("p: [\n", "/m.yaml:2", "not valid YAML"),
        ("- p\n", "/m.yaml:1", "must be a mapping of profiles"),
        ("profiles: {p: {model: m}}\nversion: 1\n", "/m.yaml:2", "beside 'profiles' there is nothing else"),
        ("", "config.yaml:5", "holds no profiles"),
    ],
)
def test_what_is_wrong_in_a_manifest_is_told_with_its_name_and_line(
    tmp_path: Path, text: str, where: str, what: str
) -> None:
    found = manifest_problems(tmp_path, text)
    assert any(where in problem and what in problem for problem in found), found


def test_an_id_in_both_places_is_refused(tmp_path: Path) -> None:
    found = manifest_problems(tmp_path, "p: {model: m}\n", "    profiles: {p: {model: n}}")
    assert any("config.yaml:6" in problem and "is also in /m.yaml" in problem for problem in found), found


def test_problems_of_both_files_are_told_at_once(tmp_path: Path) -> None:
    found = manifest_problems(tmp_path, "p: {modle: m}\n", "    start_timeout: 3\n")
    assert [problem.split(":")[0] for problem in found] == ["config.yaml", "/m.yaml"]


def test_two_engines_on_one_address_are_refused_if_one_sleeps() -> None:
    entry = "{type: generic_process, start_cmd: x, base_url: 'http://127.0.0.1:1'%s}"
    text = f"engines:\n  a: {entry % ', sleep_path: /sleep, wake_path: /wake'}\n  b: {entry % ''}\n"
    with pytest.raises(ConfigError, match="keeps its port"):
        load_text(text, base_dir=Path("/base"), environ={})


def test_what_only_processes_can_do_is_warned_of_elsewhere() -> None:
    text = "engines: {o: {type: ollama, keep_slots: true, sleep_path: /s, wake_path: /w}}"
    warnings = [w.message for w in load_text(text, base_dir=Path("/base"), environ={}).warnings]
    assert sum("has no effect on engines of type 'ollama'" in message for message in warnings) == 2
