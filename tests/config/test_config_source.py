"""YAML to plain data: variables, duplicates, merges, and files that try to be too big."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginerouter.config.load import load, load_text
from enginerouter.config.model import Config
from enginerouter.errors import ConfigError

ENGINE = "engines: {a: {type: generic_process, start_cmd: [x, '{port}']}}\n"


def config_of(text: str, **environ: str) -> Config:
    return load_text(text, base_dir=Path("/base"), environ=environ).config


def message_of(text: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_text(text, base_dir=Path("/base"), environ=environ)
    return str(caught.value)


def test_variables_expand_in_values() -> None:
    config = config_of("host: ${HOST}\nlog_format: ${FORM:-json}\nport: ${PORT}", HOST="::1", PORT="9")
    assert (config.host, config.log_format, config.port) == ("::1", "json", 9)


def test_a_default_counts_for_an_empty_variable_as_in_a_shell() -> None:
    assert config_of("host: ${HOST:-::1}", HOST="").host == "::1"


def test_a_secret_of_digits_from_a_variable_stays_text() -> None:
    assert config_of("api_keys:\n- '${KEY}'\n- ${OTHER}", KEY="123", OTHER="0456").api_keys[1].key == "0456"


def test_two_dollars_are_one_and_a_lone_dollar_stays() -> None:
    text = ENGINE.replace("x,", "'$$HOME', '$HOME', '$${A}', '${A}$${A}',")
    settings = config_of(text, A="v").engines["a"]
    assert getattr(settings, "start_cmd")[:4] == ("$HOME", "$HOME", "${A}", "v${A}")  # noqa: B009


def test_keys_do_not_expand() -> None:
    assert "${A}: unknown key" in message_of("${A}: 1", A="port")


def test_an_unset_variable_is_a_problem_at_its_line() -> None:
    message = message_of("port: 1\nhost: ${NOWHERE}")
    assert message.startswith("config.yaml:2: host: the environment variable NOWHERE is not set")


def test_a_variable_with_a_bad_name_is_a_problem() -> None:
    assert "'${a b}' is not a variable" in message_of("host: ${a b}")
    assert "is not a variable" in message_of("host: ${HOST")


@pytest.mark.parametrize("key", ["api_key: '${KEY}'", "api_key: ${KEY}", "api_key: ${KEY:-}", "api_key_env: KEY"])
def test_a_remote_engine_without_its_key_is_unconfigured(key: str) -> None:
    text = f"engines:\n  r:\n    type: remote\n    base_url: https://h\n    {key}\n"
    assert config_of(text).engines["r"].unconfigured
    settings = config_of(text, KEY="s3cret").engines["r"]
    assert not settings.unconfigured
    assert settings.api_key == "s3cret"


def test_a_local_engine_without_its_key_is_a_problem() -> None:
    assert "KEY is not set" in message_of("engines: {r: {type: ollama, api_key: '${KEY}'}}")


def test_a_remote_engine_that_needs_no_key_is_configured() -> None:
    assert not config_of("engines: {r: {type: remote, base_url: 'https://h'}}").engines["r"].unconfigured


def test_merged_keys_give_way_to_own_keys() -> None:
    text = (
        "engines:\n"
        "  a: &base {type: generic_process, start_cmd: 'x {port}', start_timeout_s: 1, max_restarts: 7}\n"
        "  b: {<<: *base, start_timeout_s: 5}\n"
        "  c: {<<: [{max_restarts: 9}, *base]}\n"
    )
    engines = config_of(text).engines
    assert (engines["b"].start_timeout_s, engines["b"].max_restarts) == (5, 7)
    assert (engines["c"].start_timeout_s, engines["c"].max_restarts) == (1, 9)


def test_aliases_that_expand_without_end_are_refused() -> None:
    assert "an alias contains itself" in message_of("models: &m [*m]")


def test_aliases_that_multiply_are_refused_quickly() -> None:
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for before, name in zip("abcdefghij", "bcdefghijk", strict=True):
        lines.append(f"{name}: &{name} [{', '.join(['*' + before] * 10)}]")
    assert "expand to more than 100000 values" in message_of("\n".join(lines))


def test_deep_nesting_is_refused() -> None:
    assert "nested too deeply" in message_of("[" * 60 + "]" * 60)
    assert "nested too deeply" in message_of("[" * 20_000)


def test_a_large_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("#" * (1 << 20) + "\n")
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        load(path)


def test_yes_no_on_off_are_booleans() -> None:
    config = config_of("prefill_keepalive: off\nmetrics_require_key: yes")
    assert (config.prefill_keepalive, config.metrics_require_key) == (False, True)


def test_arguments_and_environment_are_taken_as_written() -> None:
    text = (
        "engines:\n  a:\n    type: generic_process\n"
        "    start_cmd: [x, --port, '{port}', -c, 1_000, --fa, on, -t, 0.10]\n"
        "    env: {A: 0x10, B: yes, C: 2024-01-01, D: 1e3}\n"
    )
    settings = config_of(text).engines["a"]
    assert getattr(settings, "start_cmd")[3:] == ("-c", "1_000", "--fa", "on", "-t", "0.10")  # noqa: B009
    assert getattr(settings, "env") == {"A": "0x10", "B": "yes", "C": "2024-01-01", "D": "1e3"}  # noqa: B009


def test_a_missing_file_is_a_readable_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file.*enginerouter demo"):
        load(tmp_path / "none.yaml")


def test_a_folder_is_a_readable_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this is a folder"):
        load(tmp_path)


def test_a_path_through_a_file_is_a_readable_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "file" / "config.yaml")


def test_bytes_that_are_not_utf8_are_a_readable_error(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"port: 1\nhost: \xff\xfe\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}:2: the file is not UTF-8 text")


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbfport: 1234\r\n")
    assert load(path).config.port == 1234
