"""The schema and the reference equal the model, and the schema agrees with the loader as far as it can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from test_config_invalid import INVALID

from enginerouter.cli import check as cli_check
from enginerouter.cli.check import check, schema
from enginerouter.cli.main import main
from enginerouter.config.reference import reference_text
from enginerouter.config.schema import config_schema, schema_text
from enginerouter.swap.amdgpu import Amdgpu
from enginerouter.swap.nvidia import CardReading
from enginerouter.swap.pick import Picked

ROOT = Path(__file__).parents[2]
VALIDATOR = Draft202012Validator(config_schema())

# Parts of messages about what only the loader can know: it sees the line, the environment, or two keys at once.
BEYOND_A_SCHEMA = (
    "given twice", "already given", "is not closed", "given together", "swap_max_wait_s", "one of key", "not 2",
    "is not set", "cannot be read", "cannot be the name", "'{port}' in start_cmd", "router's own", "'TERM'",
    "there is no engine '", "stop_cmd", "'{model}'", "serve_script", "a header name", "environment variable",
    "control characters", "1 to 65535", "remove pin", "number of a signal", "neither target nor chain", "not both",
    "stands for itself", "must not begin with the name", "itself an alias", "also the id", "→", "'fast'?",
    "has no model", "not on this machine", "above memory_budget_gib", "YAML", "indent", "in quotes", "one document",
    "'{flags}'", "one of them", "serves these alone", "or a list", "white space", "no profile", "already a model",
    "is engine 'a'", "all the time", "both can run",
    "no file", "maker's cloud", "--slot-save-path", "in a container", "path of keys",
    "'stream' cannot", "'model' cannot", "is inside", "no host and port", "number of a database",
    "not supported", "plain text", "must name a mapping", "finite", "at most", "no host", "'base_url' is missing",
    # To JSON Schema 8077.0 is a whole number.
    "not 8077.0",
)  # fmt: skip


def test_the_schema_file_is_up_to_date() -> None:
    assert (ROOT / "config.schema.json").read_text() == schema_text(), "run: enginerouter schema > config.schema.json"


def test_the_reference_is_up_to_date() -> None:
    command = "python -m enginerouter.config.reference > docs/reference/config.md"
    assert (ROOT / "docs/reference/config.md").read_text() == reference_text(), f"run: {command}"


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(config_schema())


@pytest.mark.parametrize("path", ["config.example.yaml", "tests/config/predecessor.yaml"])
def test_the_examples_fit_the_schema(path: str) -> None:
    errors = [error.message for error in VALIDATOR.iter_errors(yaml.safe_load((ROOT / path).read_text()))]
    assert errors == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "port: ${PORT}\nlog_level: ${LEVEL:-INFO}\ncache: off",
        "aliases:\napi_keys:\nengines:\nds4:\n",
        "api_keys: [plain, {name: x, key_env: Y}]",
        "engines: {a: {type: generic_process, start_cmd: 'x {port}', stop_signal: 15, memory_gib: auto}}",
        "aliases: {x: y, z: {chain: [a/b, c]}}",
    ],
)
def test_what_loads_fits_the_schema(text: str) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(yaml.safe_load(text) or {})] == []


def _expressible() -> list[Any]:
    return [row[0] for row in INVALID if row[3] is not None and not any(part in row[3] for part in BEYOND_A_SCHEMA)]


@pytest.mark.parametrize("text", _expressible(), ids=lambda value: str(value)[-40:])
def test_the_schema_refuses_what_the_loader_refuses(text: str) -> None:
    assert not VALIDATOR.is_valid(yaml.safe_load(text))


def test_the_schema_test_covers_most_of_the_table() -> None:
    assert len(_expressible()) > 40


def test_no_unknown_key_fits_the_schema() -> None:
    for text in ("x: 1", "engines: {a: {type: ollama, x: 1}}", "health: {x: 1}", "aliases: {a: {chain: [b], x: 1}}"):
        assert not VALIDATOR.is_valid(yaml.safe_load(text))


def test_every_key_is_documented() -> None:
    def walk(node: Any) -> None:
        if isinstance(node, dict):
            for name, entry in node.get("properties", {}).items():
                if isinstance(entry, dict) and "$ref" not in entry and "const" not in entry and "if" not in node:
                    assert entry.get("description") or entry.keys() <= {"const", "enum"}, name
            for child in node.values():
                walk(child)
        elif isinstance(node, list):
            for child in node:
                walk(child)

    walk(config_schema())


def test_check_says_ok_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(ROOT / "config.example.yaml") == 0
    memory, said = capsys.readouterr().out.splitlines()
    assert memory.startswith("memory: ")
    assert said == "OK (2 model(s), engines: [llama, coder])"


def test_check_counts_the_models_of_engines_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two that one serves, and an engine that serves its own name."""
    process = "{type: generic_process, start_cmd: ['true', '{port}']"
    path = tmp_path / "config.yaml"
    path.write_text(f"engines:\n  a: {process}, served_models: [x, y]}}\n  b: {process}}}\n")
    assert check(path) == 0
    assert "OK (3 model(s), engines: [a, b])" in capsys.readouterr().out


def test_check_tells_every_problem_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("port: abc\nhots: x\n")
    assert check(path) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"config error: {path}:1: port: must be a whole number from 0 to 65535, not 'abc'",
        f"config error: {path}:2: hots: unknown key – did you mean 'host'?",
        f"warning: {path}:1: there are no engines: nothing can be served – add one under 'engines:'",
        f"{path}: 2 problems",
    ]


def test_check_shows_warnings_beside_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("prot: 1\nhost: 0.0.0.0\ndiscover: {port_probe: {enabled: true}}\n")
    assert check(file) == 1
    err = capsys.readouterr().err
    assert "config error:" in err
    assert "warning:" in err
    assert "no api_keys are set" in err
    assert "discover.port_probe" in err
    assert err.endswith(": 1 problem\n")


def test_schema_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert schema() == 0
    assert json.loads(capsys.readouterr().out)["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_check_prints_each_warning_of_memory_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They used to come twice: as a line of the log, too."""

    class Broken:
        name = "broken"

        async def read(self) -> CardReading:
            return CardReading(problem="no driver")

    def picked(wanted: str) -> Picked:
        return Picked(wanted, readers=lambda: [Broken()], amd=lambda: Amdgpu(tmp_path, tmp_path))

    monkeypatch.setattr(cli_check, "Picked", picked)
    assert check(ROOT / "config.example.yaml") == 0
    said = capsys.readouterr().err.splitlines()
    assert said == ["warning: NVIDIA cards cannot be asked: no driver; until a restart the host is watched"]


def test_check_warns_of_a_server_elsewhere_that_evicts_engines_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    for more, is_warned in (("", True), (", holds_memory: false", False), (", trust_local: true", False)):
        file.write_text(f"engines: {{far: {{type: ollama, base_url: 'http://192.0.2.7:11434'{more}}}}}")
        assert check(file) == 0
        assert ("engines.far.base_url: 192.0.2.7 is not this machine" in capsys.readouterr().err) is is_warned
    for near in ("127.0.0.1", "ollama", "localhost", "box.local"):
        file.write_text(f"engines: {{near: {{type: ollama, base_url: 'http://{near}:11434'}}}}")
        assert check(file) == 0
        assert "not this machine" not in capsys.readouterr().err


def test_check_warns_of_a_name_that_fences_keep_out_in_doubt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    safe = "aliases: {safe: {chain: [near/m], local_only: true}}"
    cases = (("ollama", "", safe, True), ("ollama", "", "", False), ("ollama", ", trust_local: true", safe, False))
    for host, more, fence, is_warned in (*cases, ("localhost", "", safe, False)):
        file.write_text(f"engines: {{near: {{type: ollama, base_url: 'http://{host}:11434'{more}}}}}\n{fence}\n")
        assert check(file) == 0
        assert ("ollama may be another machine" in capsys.readouterr().err) is is_warned


def test_what_must_stay_here_may_not_lead_to_an_address_of_another_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which addresses are this machine's own only it knows: what checks, serves and reloads here says the same."""
    file = tmp_path / "config.yaml"
    far = "engines: {far: {type: ollama, base_url: 'http://192.0.2.7:11434', holds_memory: false%s}}\naliases:\n%s\n"
    chain = "  safe: {chain: [far/m], local_only: true}"
    inner = "  safe: {chain: [inner], local_only: true}\n  inner: {chain: [far/m]}"
    for more, aliases, is_wrong in (
        ("", chain, True),
        ("", inner, True),
        ("", "  safe: {target: far/m, local_only: true}", True),
        ("", "  'safe-*': {chain: [far/m], local_only: true}", True),
        ("", "  safe: {chain: [far/m]}", False),
        (", trust_local: true", chain, False),
    ):
        file.write_text(far % (more, aliases))
        assert check(file) == is_wrong, aliases
        said = capsys.readouterr().err
        assert ("leads to engine 'far', and 192.0.2.7 is not this machine" in said) is is_wrong
        assert (f"config error: {file}:3: aliases." in said) is is_wrong
        if is_wrong:
            assert main(["--config", str(file)]) == 1
            assert "192.0.2.7 is not this machine" in capsys.readouterr().err
