"""What is refused: for each wrong snippet its line, its path and what the message says."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from enginerouter.config.load import load_text
from enginerouter.errors import ConfigError, Problem

ENGINE = "engines: {a: {type: generic_process, start_cmd: [x, '{port}']}}\n"


def problems_of(text: str, **environ: str) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load_text(text, base_dir=Path("/base"), environ=environ)
    return caught.value.problems


def process(keys: str) -> str:
    """One engine with the keys given; they begin on line 4."""
    return "engines:\n  a:\n    type: generic_process\n    " + keys.replace("\n", "\n    ") + "\n"


STARTED = "start_cmd: [x, '{port}']\n"
PROFILED = "start_cmd: 'x {port} {model}'\nprofiles: {p: {model: m}}\n"

TWO_UNITS = """engines:
  a: {type: systemd_unit, unit: x, base_url: 'http://127.0.0.1:1'}
  b: {type: systemd_unit, unit: x.service, base_url: 'http://127.0.0.1:2'}
"""

# (text, line, path, part of the message with its hint)
INVALID = [
    # what the predecessor let pass
    ("port: abc", 1, "port", "whole number from 0 to 65535, not 'abc'"),
    ("port: 99999", 1, "port", "from 0 to 65535, not 99999"),
    ("port: '80'", 1, "port", "written without quotes"),
    ("port: 8077.0", 1, "port", "not 8077.0"),
    ("host: null", 1, "host", "has no value"),
    ("drain_timeout_s: soon", 1, "drain_timeout_s", "must be a number, at least 0, not 'soon'"),
    ("swap_memory_settle_timeout_s: '25'", 1, "swap_memory_settle_timeout_s", "written without quotes"),
    ("drain_timeout_s: -1", 1, "drain_timeout_s", "at least 0, not -1"),
    ("drain_timeout_s: true", 1, "drain_timeout_s", "not true"),
    ("drain_timeout_s: .nan", 1, "drain_timeout_s", "finite"),
    ("drain_timeout_s: .inf", 1, "drain_timeout_s", "finite"),
    ("drain_timeout_s: 1.0e+300", 1, "drain_timeout_s", "at most"),
    ("drain_timeout: 3", 1, "drain_timeout", "did you mean 'drain_timeout_s'?"),
    ("api_keys: secret", 1, "api_keys", "write api_keys: [...]"),
    ("api_keys: 5", 1, "api_keys", "must be a list"),
    ("api_keys: [12345]", 1, "api_keys[0]", "put it in quotes"),
    ("api_keys: [good, null]", 1, "api_keys[1]", "must be text"),
    ("log_level: 10", 1, "log_level", "one of DEBUG"),
    ("log_level: WARN", 1, "log_level", "did you mean 'WARNING'?"),
    ("engines: {1: {type: ollama}}", 1, "engines.1", 'write "1" in quotes'),
    (ENGINE + "models:\n- {id: m, engine: a}\n- {id: m, engine: a}", 4, "models[1].id", "already given on line 3"),
    (process("base_url: 127.0.0.1:80\nstart_cmd: [x]"), 4, "engines.a.base_url", "begin with http://"),
    (process(STARTED + "ready_path: health"), 5, "engines.a.ready_path", "'health' must begin with '/'"),
    (process(STARTED + "ready_check: bogus"), 5, "engines.a.ready_check", "'model:<id>' or 'key==value'"),
    (process(STARTED + "stop_signal: SIGTREM"), 5, "engines.a.stop_signal", "did you mean 'TERM'?"),
    (process(STARTED + "stop_signal: 99"), 5, "engines.a.stop_signal", "not the number of a signal"),
    (process("start_cmd: serve '{port}"), 4, "engines.a.start_cmd", "a quote is not closed"),
    (process(STARTED + "env: [A]"), 5, "engines.a.env", "must be a mapping"),
    (process(STARTED + "control_headers: [A]"), 5, "engines.a.control_headers", "must be a mapping"),
    ("engines: {d: {type: ds4, control: systemd}}", 1, "engines.d.control", "did you mean 'systemd-user'?"),
    ("engines: {d: {type: ds4, control: process}}", 1, "engines.d", "'serve_script' is missing"),
    ("port: 1\nport: 2", 2, "port", "given twice, on lines 1 and 2"),
    ("engines:\n  a: {type: ollama}\n  a: {type: ollama}", 3, "engines.a", "given twice, on lines 2 and 3"),
    # the same for the other keys
    ("swap_keepalive_interval_s: 0", 1, "swap_keepalive_interval_s", "set swap_keepalive_enabled: false"),
    ("max_body_mib: 0", 1, "max_body_mib", "at least 1"),
    ("on_exit: hold", 1, "on_exit", "'stop' or 'keep', not 'hold'"),
    ("metrics_require_key: 'yes'", 1, "metrics_require_key", "true or false"),
    ("allowed_origins: [chat.example]", 1, "allowed_origins[0]", "scheme://host"),
    ("allowed_origins: ['https://chat.example/']", 1, "allowed_origins[0]", "without a path"),
    ("cache: {store: 'http://x'}", 1, "cache.store", "redis://"),
    ("ds4: 0", 1, "ds4", "must be a mapping"),
    ("discover: true", 1, "discover", "must be a mapping"),
    ("discover: {collision: first}", 1, "discover.collision", "config_order"),
    ("health: {probe_interval: 3}", 1, "health.probe_interval", "did you mean 'probe_interval_s'?"),
    ("tls_cert_file: cert.pem", 1, "tls_cert_file", "given together"),
    ("swap_min_residency_s: 20", 1, "swap_min_residency_s", "swap_max_wait_s (15)"),
    # keys of clients
    ("api_keys: [{name: x}]", 1, "api_keys[0]", "one of key, key_env, key_file"),
    ("api_keys: [{key: a, key_env: B}]", 1, "api_keys[0]", "not 2"),
    ("api_keys: [{key_env: UNSET}]", 1, "api_keys[0].key_env", "UNSET is not set"),
    ("api_keys: [{key_file: /nowhere/key}]", 1, "api_keys[0].key_file", "cannot be read"),
    ("api_keys: [same, {key: same}]", 1, "api_keys[1]", "given twice"),
    ("api_keys: ['']", 1, "api_keys[0]", "must not be empty"),
    # engines
    ("engines: [a]", 1, "engines", "must be a mapping"),
    ("engines: {a: {type: olama}}", 1, "engines.a.type", "did you mean 'ollama'?"),
    ("engines: {a: {}}", 1, "engines.a", "'type' is missing"),
    ("engines: {a: 3}", 1, "engines.a", "must be a mapping"),
    ("engines: {a/b: {type: ollama}}", 1, "engines.a/b", "cannot be the name"),
    (process("ready_path: /health"), 2, "engines.a", "'start_cmd' is missing"),
    (process("start_cmd: []"), 4, "engines.a.start_cmd", "must not be empty"),
    (process("start_cmd: [llama-server]"), 2, "engines.a", "give 'base_url', or '{port}' in start_cmd"),
    (process(STARTED + "start_timeout: 4"), 5, "engines.a.start_timeout", "did you mean 'start_timeout_s'?"),
    (process(STARTED + "start_timeout_s: 0"), 5, "engines.a.start_timeout_s", "above 0"),
    (process(STARTED + "memory_gib: lots"), 5, "engines.a.memory_gib", "a number above 0 or 'auto' or null"),
    (process(STARTED + "served_models: one"), 5, "engines.a.served_models", "write served_models: [...]"),
    (process(STARTED + "served_models: ['']"), 5, "engines.a.served_models[0]", "must not be empty"),
    (process(STARTED + "tags_cache_ttl_s: -1"), 5, "engines.a.tags_cache_ttl_s", "at least 0"),
    (process(STARTED + "api: [openia]"), 5, "engines.a.api[0]", "did you mean 'openai'?"),
    (process(STARTED + "env: {'A=B': 1}"), 5, "engines.a.env.A=B", "not the name of an environment variable"),
    (process(STARTED + "headers: {'a b': c}"), 5, "engines.a.headers.a b", "not a header name"),
    (process(STARTED + 'headers: {a: "x\\ny"}'), 5, "engines.a.headers.a", "control characters"),
    (process(STARTED + "sleep_path: /sleep"), 5, "engines.a.sleep_path", "given together"),
    (process(STARTED + "pin: true\nidle_unload_s: 9"), 5, "engines.a.pin", "remove pin or idle_unload_s"),
    (TWO_UNITS, 3, "engines.b.unit", "unit 'x.service' is engine 'a' already"),
    (
        "engines:\n  a: {type: systemd_unit, unit: ollama, scope: system, base_url: 'http://127.0.0.1:1'}\n"
        "  b: {type: ollama}",
        3,
        "engines.b.systemd_unit",
        "unit 'ollama.service' is engine 'a', which is started and stopped",
    ),
    (
        "engines:\n  a: {type: generic_process, start_cmd: [x], base_url: 'http://localhost:11434'}\n"
        "  b: {type: ollama}",
        3,
        "engines.b.base_url",
        "the server of 'b' is there all the time",
    ),
    (
        "engines:\n  a: {type: api_swap, base_url: 'http://127.0.0.1:8099'}\n"
        "  b: {type: systemd_unit, unit: x, base_url: 'http://127.0.0.1:8099'}",
        3,
        "engines.b.base_url",
        "the server of 'a' is there all the time",
    ),
    (
        "engines:\n  a: {type: generic_process, start_cmd: [x], base_url: 'http://127.0.0.1:9'}\n"
        "  b: {type: systemd_unit, unit: x, base_url: 'http://127.0.0.1:9', holds_memory: false}",
        3,
        "engines.b.base_url",
        "both can run at the same time",
    ),
    ("engines:\n  a: {type: ollama, base_url: 'http://127.0.0.1:8077'}", 2, "engines.a.base_url", "the router's own"),
    (process("start_cmd: [docker, run, x, '{port}']"), 4, "engines.a.start_cmd", "stop_cmd: [docker, stop, NAME]"),
    (process("start_cmd: [/usr/bin/podman, run, '{port}']"), 4, "engines.a.start_cmd", "needs a stop_cmd"),
    (process(STARTED + "profiles: {p: {model: m.gguf}}"), 4, "engines.a.start_cmd", "'{model}'"),
    (
        process("start_cmd: 'x {port} {model}'\nprofiles: {p: {model: m, flags: {c: 1}}}"),
        4,
        "engines.a.start_cmd",
        "'{flags}'",
    ),
    (process(PROFILED + "pin: true"), 6, "engines.a.pin", "give pin to one of them"),
    (process(PROFILED + "preload: true"), 6, "engines.a.preload", "give preload to one of them"),
    (process(PROFILED + "served_models: [q]"), 6, "engines.a.served_models[0]", "serves these alone"),
    (
        process("start_cmd: 'x {port} {model} {flags}'\nprofiles: {p: {model: m, flags: {a: {b: c}}}}"),
        5,
        "engines.a.profiles.p.flags.a",
        "must be text, a number, on/off, or a list",
    ),
    (process("start_cmd: 'x {port} {model}'\nprofiles: {' p': {model: m}}"), 5, "engines.a.profiles. p", "white space"),
    (
        process("start_cmd: 'x {port} {model}'\nprofiles: {p: {model: m, pin: on, idle_unload_s: 9}}"),
        5,
        "engines.a.profiles.p.pin",
        "remove pin or idle_unload_s",
    ),
    (process(PROFILED.strip()) + "models: [{id: q, engine: a}]", 6, "models[0].id", "no profile of engine 'a'"),
    (process(PROFILED.strip()) + "aliases: {p: a/p}", 6, "aliases.p", "also the id of a profile"),
    (
        process(PROFILED) + "  b: {type: ollama}\nmodels: [{id: p, engine: b}]",
        5,
        "engines.a.profiles.p",
        "already a model of engine 'b'",
    ),
    (process("start_cmd: 'x {port} {model}'\nmanifest: /nowhere/m.yaml"), 5, "engines.a.manifest", "no file"),
    (
        process("start_cmd: docker run --slot-save-path /kv {port}\nstop_cmd: docker stop x\nkeep_slots: on"),
        6,
        "engines.a.keep_slots",
        "not in a container",
    ),
    (process(STARTED + "keep_slots: true"), 5, "engines.a.keep_slots", "'--slot-save-path FOLDER'"),
    ("engines: {a: {type: remote}}", 1, "engines.a", "'base_url' is missing"),
    ("engines: {a: {type: systemd_unit, base_url: 'http://h'}}", 1, "engines.a", "'unit' is missing"),
    ("engines: {a: {type: remote, base_url: 'http://u:p@h'}}", 1, "engines.a.base_url", "must not contain a user"),
    ("engines: {a: {type: remote, base_url: 'http://h/?k=1'}}", 1, "engines.a.base_url", "query"),
    ("engines: {a: {type: remote, base_url: 'http://:80'}}", 1, "engines.a.base_url", "no host"),
    ("engines: {a: {type: remote, base_url: 'http://h:99999'}}", 1, "engines.a.base_url", "1 to 65535"),
    ("engines: {a: {type: remote, base_url: 'ftp://h'}}", 1, "engines.a.base_url", "http://"),
    ("engines: {a: {type: ollama, api_key_env: NONE}}", 1, "engines.a.api_key_env", "NONE is not set"),
    ("together: [[a, b]]\n" + ENGINE, 1, "together[0][1]", "there is no engine 'b'"),
    (
        "port: 9000\n" + process("base_url: http://localhost:9000\nstart_cmd: x"),
        5,
        "engines.a.base_url",
        "router's own",
    ),
    # models and aliases
    (ENGINE + "models: [{id: m, engine: aa}]", 2, "models[0].engine", "there is no engine 'aa'"),
    (ENGINE + "models: [{engine: a}]", 2, "models[0]", "'id' is missing"),
    (ENGINE + "models: [text]", 2, "models[0]", "must be a mapping"),
    (ENGINE + "models: [{id: 1.5, engine: a}]", 2, "models[0].id", "put it in quotes"),
    (ENGINE + "models: [{id: ' m', engine: a}]", 2, "models[0].id", "white space"),
    (
        ENGINE + "models: [{id: m, engine: a, disable_thinking_below_max_tokens: 0}]",
        2,
        "models[0].disable_thinking_below_max_tokens",
        "at least 1",
    ),
    (ENGINE + "models: [{id: m, engine: a, strip_params: [a..b]}]", 2, "models[0].strip_params[0]", "path of keys"),
    (ENGINE + "models: [{id: m, engine: a, strip_params: ['']}]", 2, "models[0].strip_params[0]", "path of keys"),
    (
        ENGINE + "models: [{id: m, engine: a, strip_params: [stream]}]",
        2,
        "models[0].strip_params[0]",
        "'stream' cannot",
    ),
    (
        ENGINE + "models: [{id: m, engine: a, set_params: {model: x}}]",
        2,
        "models[0].set_params.model",
        "'model' cannot",
    ),
    (
        ENGINE + "models: [{id: m, engine: a, set_params: {options: {a: 1}, options.b: 2}}]",
        2,
        "models[0].set_params.options.b",
        "is inside 'options', which is given too",
    ),
    ("cache: {store: disk}", 1, "cache.store", "must be 'memory' or redis://"),
    ("cache: {store: 'redis://h:x'}", 1, "cache.store", "1 to 65535"),
    ("cache: {store: 'redis://h:0'}", 1, "cache.store", "no host and port"),
    ("cache: {store: 'redis://h/one'}", 1, "cache.store", "number of a database"),
    ("cache: {store: 'redis://h/1?socket_timeout=60'}", 1, "cache.store", "number of a database"),
    (ENGINE + "aliases: {x: 3}", 2, "aliases.x", "must be text"),
    (ENGINE + "aliases: {x: ''}", 2, "aliases.x", "must not be empty"),
    (ENGINE + "aliases: {x: [a]}", 2, "aliases.x", "not a list"),
    (ENGINE + "aliases: {x: {hidden: true}}", 2, "aliases.x", "neither target nor chain"),
    (ENGINE + "aliases: {x: {target: a, chain: [a]}}", 2, "aliases.x", "not both"),
    (ENGINE + "aliases: {x: x}", 2, "aliases.x", "stands for itself"),
    (ENGINE + "aliases: {a/x: a}", 2, "aliases.a/x", "must not begin with the name of an engine"),
    (ENGINE + "aliases: {y: a, x: y}", 2, "aliases.x", "is itself an alias"),
    (ENGINE + "aliases: {x: claude-x, 'claude-*': a}", 2, "aliases.x", "is itself an alias (it matches 'claude-*')"),
    (ENGINE + "models: [{id: m, engine: a}]\naliases: {m: a}", 3, "aliases.m", "also the id of a model"),
    (ENGINE + "aliases: {x-*: {chain: [a, y]}, y: {chain: [x-1]}}", 2, "aliases.x-*", "x-* → y → x-*"),
    (ENGINE + "aliases: {x: {chain: [a, y]}, y: {chain: [x]}}", 2, "aliases.x", "x → y → x"),
    (ENGINE + "models: [{id: fast, engine: a}]\naliases: {x: {chain: [fsat]}}", 3, "aliases.x.chain[0]", "'fast'?"),
    (
        ENGINE + "models: [{id: m, engine: a}]\naliases: {x: {chain: [a/n]}}",
        3,
        "aliases.x.chain[0]",
        "has no model 'n'",
    ),
    (
        "engines: {r: {type: remote, base_url: 'https://h'}}\n"
        "aliases: {x: {chain: [y], local_only: on}, y: {chain: [r/m]}}",
        2,
        "aliases.x.local_only",
        "engine 'r' is not on this machine",
    ),
    (
        "engines: {o: {type: ollama, base_url: 'http://ollama.example.com:11434'}}\n"
        "aliases: {x: {target: o/m, local_only: on}}",
        2,
        "aliases.x.local_only",
        "engine 'o' is not on this machine",
    ),
    *(
        (
            "engines: {o: {type: ollama, base_url: 'http://localhost:11434'}}\n"
            "models: [{id: m, engine: o, upstream_id: 'm:1t-cloud'}]\n"
            f"aliases: {{x: {{chain: [{entry}], local_only: on}}}}",
            3,
            "aliases.x.local_only",
            "maker's cloud",
        )
        for entry in ("'o/gpt-oss:120b-cloud'", "m", "o/m")
    ),
    # memory
    (
        "memory_budget_gib: 8\n" + process(STARTED + "memory_gib: 9"),
        6,
        "engines.a.memory_gib",
        "above memory_budget_gib",
    ),
    # the file
    ("a: [", 1, "", "not valid YAML"),
    ("port:\n\t- 1", 2, "", "indent with spaces"),
    ("host: a: b", 1, "", "in quotes"),
    ("api_keys: [${KEY}]", 1, "", "put ${...} in quotes"),
    ("port: 1\n---\nport: 2", 2, "", "one document"),
    ("port: 1\nx\0y", 2, "", "not allowed in YAML"),
    ("- port", 1, "", "must be a mapping"),
    ("just text", 1, "", "must be a mapping"),
    ("host: !!python/name:os.system", 1, "host", "is not supported"),
    ("host: !secret x", 1, "host", "tag !secret is not supported"),
    ("[a]: b", 1, "?", "must be plain text"),
    ("port: 1" + "0" * 5000, 1, "port", None),
    ("<<: 3", 1, "", "must name a mapping"),
]


@pytest.mark.parametrize(("text", "line", "path", "message"), INVALID, ids=lambda value: str(value)[-40:])
def test_a_wrong_value_is_refused_with_its_line_and_path(text: str, line: int, path: str, message: str | None) -> None:
    """A5: the predecessor let a drain or settle time be text; its first swap then was a 500 with both engines down."""
    problems = problems_of(text)
    found = [problem for problem in problems if (problem.line, problem.path) == (line, path)]
    assert found, problems
    if message is not None:
        assert message in str(found[0])


@pytest.mark.parametrize("text", [row[0] for row in INVALID], ids=lambda value: str(value)[-40:])
def test_one_mistake_is_told_once(text: str) -> None:
    """A value that could not be read must not make a second problem elsewhere."""
    assert len(problems_of(text)) == 1


def test_all_problems_are_told_at_once_in_the_order_of_the_file() -> None:
    text = (
        "port: abc\n"
        "drain_timeout: 3\n"
        "engines:\n"
        "  a: {type: generic_process, start_cmd: 'x {port}', stop_signal: NONE}\n"
        "  b: {type: olama}\n"
        "models:\n"
        "  - {id: m, engine: b}\n"
        "  - text\n"
        "  - {id: n, engine: c}\n"
        "aliases: {x: x}\n"
    )
    assert [(problem.line, problem.path) for problem in problems_of(text)] == [
        (1, "port"),
        (2, "drain_timeout"),
        (4, "engines.a.stop_signal"),
        (5, "engines.b.type"),
        (8, "models[1]"),
        (9, "models[2].engine"),
        (10, "aliases.x"),
    ]


def two(first: str, second: str, top: str = "") -> str:
    base = "type: generic_process, start_cmd: x, base_url: 'http://127.0.0.1"
    return f"{top}\nengines:\n  a: {{{base}:9000', {first}}}\n  b: {{{base}:{second}}}\n"


@pytest.mark.parametrize(
    "text",
    [
        two("holds_memory: false", "9000'"),
        two("pin: false", "9000'", "together: [[a, b]]"),
        two("memory_gib: 4", "9000', memory_gib: 4", "memory_budget_gib: 10"),
        two("memory_gib: 4", "9000', memory_gib: auto", "memory_budget_gib: 10"),
        two("pin: false", "9000', holds_memory: false").replace("127.0.0.1", "localhost", 1),
    ],
)
def test_two_engines_on_one_port_are_refused_if_both_can_run(text: str) -> None:
    problem = problems_of(text)[0]
    assert problem.path == "engines.b.base_url"
    assert "engine 'a' has the same address" in problem.message


@pytest.mark.parametrize(
    "text",
    [
        two("pin: false", "9000'"),
        two("holds_memory: false", "9000', enabled: false"),
        two("memory_gib: 6", "9000', memory_gib: 6", "memory_budget_gib: 10"),
        two("memory_gib: 6", "9000'", "memory_budget_gib: 10"),
    ],
)
def test_engines_that_take_turns_may_share_a_port(text: str) -> None:
    assert load_text(text, base_dir=Path("/"), environ={}).config.engines.keys() == {"a", "b"}


@pytest.mark.parametrize(
    "text",
    [
        two("pin: true", "9001', pin: true"),
        two("pin: true", "9001', preload: true"),
        two("pin: true, memory_gib: 3", "9001', pin: true", "memory_budget_gib: 10"),
        two("pin: true, memory_gib: 6", "9001', preload: true, memory_gib: 6", "memory_budget_gib: 10"),
    ],
)
def test_engines_that_are_kept_but_cannot_be_together_are_refused(text: str) -> None:
    (problem,) = problems_of(text)
    assert problem.line == 4
    assert "cannot be in memory together with 'a'" in problem.message


@pytest.mark.parametrize(
    "text",
    [
        two("pin: true", "9001', pin: true", "together: [[a, b]]"),
        two("pin: true", "9001', pin: true, holds_memory: false"),
        two("pin: true, memory_gib: 4", "9001', preload: true, memory_gib: 6", "memory_budget_gib: 10"),
        two("pin: true", "9001', pin: true, enabled: false"),
    ],
)
def test_engines_that_are_kept_and_fit_are_accepted(text: str) -> None:
    load_text(text, base_dir=Path("/"), environ={})


def test_three_kept_engines_must_fit_as_a_whole() -> None:
    entry = "{type: generic_process, start_cmd: '{port}', pin: true, memory_gib: 4}"
    text = f"memory_budget_gib: 10\nengines: {{a: {entry}, b: {entry}, c: {entry}}}"
    (problem,) = problems_of(text)
    assert problem.path == "memory_budget_gib"
    assert "12 GiB" in problem.message


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (process("start_comd: [x, '{port}']"), "start_cmd"),
        ("engines:\n  a: {type: ollama}\nmodels:\n- {idd: m, engine: a}", "id"),
        ("engines:\n  a: {type: remote,\n   base_ulr: 'https://h'}", "base_url"),
    ],
)
def test_a_misspelt_key_is_not_also_called_missing(text: str, key: str) -> None:
    (problem,) = problems_of(text)
    assert (problem.message, problem.hint) == ("unknown key", f"did you mean {key!r}?")


def test_secrets_are_not_quoted_in_messages() -> None:
    texts = [
        "api_keys: hunter2",
        "api_keys: {hunter2: 1}",
        "engines: {a: {type: remote, base_url: 'http://u:hunter2@h', api_key: [hunter2]}}",
        "engines: {a: {type: remote, base_url: 'http://h:hunter2'}}",
        "engines: {a: {type: remote, base_url: 'http://h', headers: hunter2}}",
        "engines: {a: {type: remote, base_url: 'http://h', api_key: 'hunter2 hunter2'}}",
        "cache: {store: 'hunter2://x'}",
    ]
    for text in texts:
        said = "\n".join(f"{problem.message} {problem.hint}" for problem in problems_of(text))
        assert "hunter2" not in said


JUNK: list[Any] = [
    None, True, 0, -1, 1.5, float("nan"), 10**30, "", "a", "${UNSET}", [], [None], [[]], {}, {"a": {}}, {1: 2},
]  # fmt: skip


def places_in(data: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of plain data."""
    if not isinstance(data, dict | list):
        return []
    entries = list(data.items() if isinstance(data, dict) else enumerate(data))
    return [place for key, value in entries for place in [(data, key), *places_in(value)]]


@pytest.mark.parametrize("seed", range(60))
def test_whatever_stands_in_a_values_place_the_answer_has_lines(seed: int) -> None:
    """Never a traceback: a config, or problems that each name their line."""
    chance = random.Random(seed)
    data = yaml.safe_load((Path(__file__).parent / "predecessor.yaml").read_text())
    for _ in range(3):
        container, key = chance.choice(places_in(data))
        container[key] = chance.choice(JUNK)
    problems: list[Problem] = []
    try:
        load_text(yaml.safe_dump(data), base_dir=Path("/base"), environ={})
    except ConfigError as error:
        problems = error.problems
    assert all(problem.line for problem in problems)
