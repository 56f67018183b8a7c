"""What loads, and what comes out: defaults, older configs, paths, keys, warnings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from enginerouter.config.load import Loaded, load, load_text
from enginerouter.config.model import Alias, ApiSwap, Config, GenericProcess, Ollama, Remote, SystemdUnit

ROOT = Path(__file__).parents[2]
BASE = Path("/base")
ENGINE = "engines: {a: {type: generic_process, start_cmd: [x, '{port}']}}\n"


def loaded(text: str, **environ: str) -> Loaded:
    return load_text(text, base_dir=BASE, environ=environ)


def engine(text: str) -> GenericProcess:
    settings = loaded(text).config.engines["a"]
    assert isinstance(settings, GenericProcess)
    return settings


# --- defaults and examples ---------------------------------------------------------------------------------


def test_an_empty_file_loads_with_all_defaults_and_a_warning() -> None:
    result = loaded("")
    expected = Config(base_dir=BASE, log_file=BASE / "logs/router.log", state_file=BASE / "state.json")
    assert result.config == expected
    assert "there are no engines" in str(result.warnings[0])


def test_the_example_loads_without_a_warning() -> None:
    result = load(ROOT / "config.example.yaml", {})
    assert result.warnings == ()
    assert list(result.config.engines) == ["llama", "coder"]
    assert result.config.aliases["claude-*"].target == "coder-32b"


def test_an_empty_value_of_a_list_or_mapping_is_its_default() -> None:
    config = loaded("aliases:\napi_keys:\nmodels:\ntogether:\nengines:\nhealth:\n").config
    assert (config.aliases, config.api_keys, config.models) == ({}, (), ())


def test_a_process_has_the_documented_defaults() -> None:
    settings = engine(ENGINE)
    assert settings.base_url is None
    assert (settings.start_timeout_s, settings.stop_timeout_s, settings.ready_path) == (300, 30, "/health")
    assert (settings.ready_status, settings.ready_probe_timeout_s, settings.stop_signal) == (200, 2, "TERM")
    assert (settings.max_restarts, settings.memory_gib, settings.first_byte_timeout_s) == (3, None, None)
    assert settings.log_file is None


def test_a_remote_engine_waits_two_minutes_for_its_first_byte() -> None:
    settings = loaded("engines: {r: {type: remote, base_url: 'https://h/v1/'}}").config.engines["r"]
    assert isinstance(settings, Remote)
    assert (settings.first_byte_timeout_s, settings.base_url) == (120, "https://h/v1")
    assert not settings.holds_local_memory


# --- older configs -----------------------------------------------------------------------------------------


def test_a_config_of_the_predecessor_loads_unchanged() -> None:
    config = load(ROOT / "tests/config/predecessor.yaml", {}).config
    assert list(config.engines) == ["vllm", "llamacpp", "llamacpp-big", "tabby", "ollama", "ds4"]
    vllm, tabby, ds4 = config.engines["vllm"], config.engines["tabby"], config.engines["ds4"]
    assert isinstance(vllm, GenericProcess)
    assert vllm.base_url == "http://127.0.0.1:8000"
    assert vllm.env == {"CUDA_VISIBLE_DEVICES": "0", "VLLM_LOGGING": "1"}
    assert vllm.control_headers == {"Authorization": "Bearer engine-secret"}
    llamacpp = config.engines["llamacpp"]
    assert isinstance(llamacpp, GenericProcess)
    assert llamacpp.start_cmd == ("llama-server", "--port", "8080", "-m", "/models/a b.gguf")
    assert llamacpp.stop_signal == "TERM"
    assert isinstance(tabby, ApiSwap)
    assert (tabby.loaded_path, tabby.loaded_models_key, tabby.ready_path) == ("/v1/model", "", "/v1/models")
    assert isinstance(ds4, SystemdUnit)
    assert (ds4.unit, ds4.scope, ds4.ready_path) == ("ds4.service", "user", "/v1/models")
    assert (ds4.start_timeout_s, ds4.stop_timeout_s) == (240, 45)
    assert config.api_keys[0].admin
    assert config.discover.enabled
    assert config.aliases["latest"].target == "some-ollama-tag"


def test_each_key_of_an_older_config_that_has_no_effect_is_warned_of_once() -> None:
    warnings = load(ROOT / "tests/config/predecessor.yaml", {}).warnings
    idle = [warning.path for warning in warnings if "no effect" in warning.message or "ignored" in warning.message]
    assert idle == [
        "discover.port_probe",
        "engines.vllm.process_pattern",
        "engines.ds4.process_pattern",
        "ollama",
    ]


def test_types_have_the_predecessors_defaults_when_keys_are_left_out() -> None:
    text = "engines:\n  t: {type: api_swap, base_url: 'http://127.0.0.1:5000'}\n  o: {type: ollama}\n  d: {type: ds4}\n"
    tabby, ollama, ds4 = loaded(text).config.engines.values()
    assert isinstance(tabby, ApiSwap)
    assert (tabby.health_path, tabby.load_method, tabby.unload_method) == ("/v1/models", "POST", "POST")
    assert (tabby.load_timeout_s, tabby.unload_timeout_s, tabby.systemd_unit) == (120, 60, None)
    assert (tabby.loaded_path, tabby.loaded_models_key, tabby.loaded_name_key) == (None, "models", "name")
    assert isinstance(ollama, Ollama)
    assert (ollama.base_url, ollama.ready_path) == ("http://127.0.0.1:11434", "/api/tags")
    assert (ollama.unload_timeout_s, ollama.systemd_unit) == (60, "ollama.service")
    assert isinstance(ds4, SystemdUnit)
    assert (ds4.base_url, ds4.unit) == ("http://172.17.0.1:8099", "ds4.service")
    assert (ds4.start_timeout_s, ds4.stop_timeout_s) == (240, 45)


def test_an_old_script_engine_becomes_a_process() -> None:
    text = "engines: {a: {type: ds4, control: process, serve_script: /opt/serve.sh, pin: true}}"
    settings = engine(text)
    assert (settings.start_cmd, settings.pin) == (("/opt/serve.sh",), True)
    assert settings.log_file == BASE / "logs/ds4-server.log"


@pytest.mark.parametrize(
    "text",
    [
        "ds4:\n  systemd_user_unit: my.service\n",
        "ollama:\n",
        "engines: {}\nds4: {enabled: true}\n",
        "models: [{id: m, engine: ollama}]",
    ],
)
def test_without_engines_the_old_sections_are_the_engines(text: str) -> None:
    assert sorted(loaded(text).config.engines) == ["ds4", "ollama"]


def test_an_old_section_keeps_its_own_keys_and_lines() -> None:
    config = loaded("ds4: {systemd_user_unit: my.service, start_timeout_s: 9}\nollama: {enabled: false}").config
    ds4 = config.engines["ds4"]
    assert isinstance(ds4, SystemdUnit)
    assert (ds4.unit, ds4.start_timeout_s, config.engines["ollama"].enabled) == ("my.service", 9, False)


# --- values ------------------------------------------------------------------------------------------------


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("log_file: r.log\nstate_file: /var/s.json\n" + ENGINE.replace("start", "cwd: work, start"))
    config = load(path, {}).config
    settings = config.engines["a"]
    assert isinstance(settings, GenericProcess)
    assert (config.log_file, config.state_file) == (tmp_path / "r.log", Path("/var/s.json"))
    assert settings.cwd == tmp_path / "work"
    assert (config.path, config.base_dir) == (path, tmp_path)


def test_a_null_log_file_means_standard_error_only() -> None:
    assert loaded("log_file: null").config.log_file is None


@pytest.mark.parametrize("written", ["SIGINT", "INT", "int", "2", "'2'"])
def test_a_stop_signal_is_stored_by_its_short_name(written: str) -> None:
    assert engine(ENGINE.replace("start_cmd", f"stop_signal: {written}, start_cmd")).stop_signal == "INT"


def test_a_choice_may_be_written_in_any_case() -> None:
    assert loaded("log_level: debug").config.log_level == "DEBUG"


def test_any_free_port_may_be_asked_for() -> None:
    assert loaded("port: 0").config.port == 0


def test_a_section_that_is_off_by_default_may_be_switched_on() -> None:
    cache = loaded("cache: on").config.cache
    assert cache is not None
    assert cache.embeddings
    assert loaded("cache: off").config.cache is None


def test_memory_may_be_a_number_or_auto() -> None:
    assert engine(ENGINE.replace("start_cmd", "memory_gib: 22, start_cmd")).memory_gib == 22.0
    assert engine(ENGINE.replace("start_cmd", "memory_gib: auto, start_cmd")).memory_gib == "auto"


# --- keys of clients ---------------------------------------------------------------------------------------


def test_keys_come_from_the_file_the_environment_or_another_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-file\n")
    text = "api_keys: [plain, {name: ui, key_env: UI}, {key_file: key, admin: true, models: ['q*'], priority: 2}]"
    keys = load_text(text, base_dir=tmp_path, environ={"UI": "from-env"}).config.api_keys
    assert [(key.name, key.key, key.admin) for key in keys] == [
        ("key-1", "plain", True),
        ("ui", "from-env", False),
        ("key-3", "from-file", True),
    ]
    assert (keys[0].models, keys[2].models, keys[2].priority) == (("*",), ("q*",), 2)


def test_secrets_are_never_in_a_repr() -> None:
    text = (
        "api_keys: [hunter2, {key: hunter2b}]\n"
        "cache: {store: 'redis://:hunter2@h'}\n"
        "engines:\n"
        "  a: {type: generic_process, start_cmd: '{port}', env: {K: hunter2}, headers: {K: hunter2}}\n"
        "  r: {type: remote, base_url: 'https://h', api_key: hunter2, control_headers: {K: hunter2}}\n"
    )
    assert "hunter2" not in repr(loaded(text))


# --- aliases -----------------------------------------------------------------------------------------------


def test_an_alias_is_a_rename_or_a_chain() -> None:
    text = ENGINE + (
        "models: [{id: org/m, engine: a}]\n"
        "aliases:\n"
        "  short: org/m\n"
        "  hidden: {target: org/m, hidden: true}\n"
        "  many: {chain: [short, org/m, a/org/m, a], on_mismatch: next, go_on_after_s: 3}\n"
    )
    aliases = loaded(text).config.aliases
    assert aliases["short"] == Alias(name="short", target="org/m")
    assert aliases["hidden"].hidden
    assert aliases["many"].chain == ("short", "org/m", "a/org/m", "a")


def test_a_long_row_of_chains_is_no_problem() -> None:
    rows = "".join(f"  a{n}: {{chain: [a{n + 1}]}}\n" for n in range(1200))
    assert len(loaded(f"{ENGINE}aliases:\n{rows}  a1200: {{chain: [a]}}\n").config.aliases) == 1201


def test_an_unknown_target_of_a_rename_is_only_a_warning() -> None:
    """The predecessor allowed it: a live engine may own the name."""
    result = loaded(ENGINE + "models: [{id: qwen3, engine: a}]\naliases: {x: qwen}")
    (warning,) = result.warnings
    assert (warning.line, warning.path) == (3, "aliases.x")
    assert "did you mean 'qwen3'?" in warning.hint


def test_a_glob_alias_may_stand_for_a_name_that_it_matches_itself() -> None:
    (warning,) = loaded(ENGINE + "aliases: {'claude-*': claude-opus}").warnings
    assert "is no configured model" in warning.message


def test_a_rename_of_a_model_that_a_glob_alias_matches_is_a_rename_of_the_model() -> None:
    text = ENGINE + "models: [{id: claude-x, engine: a}]\naliases: {chat: claude-x, 'claude-*': claude-x}"
    assert not loaded(text).warnings


def test_a_chain_may_name_what_only_a_live_engine_knows() -> None:
    text = "engines: {o: {type: ollama}}\naliases: {x: {chain: [o/anything, llama3]}}"
    assert any(warning.path == "aliases.x.chain[1]" for warning in loaded(text).warnings)


# --- warnings ----------------------------------------------------------------------------------------------


def test_an_open_host_without_keys_is_warned_of() -> None:
    assert any("no api_keys are set" in w.message for w in loaded("host: 0.0.0.0").warnings)
    assert not any("api_keys" in w.message for w in loaded("host: 0.0.0.0\napi_keys: [k]").warnings)
    assert not any("api_keys" in w.message for w in loaded("host: '::1'").warnings)


def test_two_engines_that_are_one_server_are_warned_of() -> None:
    text = "engines: {a: {type: ollama}, b: {type: api_swap, base_url: 'http://localhost:11434'}}"
    assert any("unloads what the other one has loaded" in w.message for w in loaded(text).warnings)


def test_engines_on_different_cards_are_warned_of() -> None:
    entry = "{type: generic_process, start_cmd: '{port}', env: {CUDA_VISIBLE_DEVICES: %d}}"
    warnings = loaded(f"engines: {{a: {entry % 0}, b: {entry % 1}}}").warnings
    assert any("one pool of memory" in w.message for w in warnings)


def test_the_model_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded("").config.port = 1  # type: ignore[misc]
