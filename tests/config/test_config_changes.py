"""What a reload does with every key: the whole table, and the comparison of two configurations that goes by it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from enginerouter.config.changes import Changes, diff
from enginerouter.config.engines import ENGINE_TYPES, EngineSettings, GenericProcess, Ollama, Profile, Remote
from enginerouter.config.key import keys_of
from enginerouter.config.model import Alias, Config, Model

# A key that is in none of these columns is refused by the first test: whoever adds one has to say what a reload does.
CONFIG = {
    "restart": {"host", "port", "tls_cert_file", "tls_key_file", "log_file", "state_file", "memory_source"},
    "live": {
        "aliases", "allow_destructive_ollama_api", "allowed_hosts", "allowed_origins", "api_keys", "cache",
        "commit_after_s", "default_model", "discover", "drain_timeout_s", "engines", "first_byte_commit_s", "health",
        "idle_unload_s", "json_keepalive_after_s", "log_format", "log_level", "max_body_mib", "max_buffered_mib",
        "max_queued_requests", "memory_budget_gib", "metrics_require_key", "models", "on_drain_timeout", "on_exit",
        "prefill_keepalive", "queue_timeout_s", "shutdown_timeout_s", "swap_keepalive_enabled",
        "swap_keepalive_interval_s", "swap_linger_s", "swap_max_wait_s", "swap_memory_settle_timeout_s",
        "swap_min_residency_s", "swap_progress", "together", "upstream_connect_timeout_s", "upstream_stall_timeout_s",
    },
}  # fmt: skip
ENGINE = {
    "engine": {
        "type", "base_url", "holds_memory",
        "start_cmd", "env", "cwd",  # generic_process
        "unit", "scope",  # systemd_unit
        "control", "serve_script", "systemd_user_unit",  # ds4, which the loader turns into another kind
    },
    "live": {
        "api", "api_key", "api_key_env", "auto_restart", "control_headers", "discover_models", "enabled",
        "first_byte_timeout_s", "headers", "idle_unload_s", "keep_slots", "max_in_flight", "max_restarts", "memory_gib",
        "pin", "preload", "ready_check", "ready_path", "ready_probe_timeout_s", "ready_status", "rollback",
        "served_models", "sleep_path", "start_timeout_s", "stop_timeout_s", "tags_cache_ttl_s", "trust_local",
        "wake_path", "warmup",
        "log_file", "manifest", "process_pattern", "profiles", "stop_cmd", "stop_signal",  # generic_process
        "health_path", "load_body", "load_method", "load_path", "load_timeout_s", "loaded_filter", "loaded_id_key",
        "loaded_models_key", "loaded_name_key", "loaded_path", "unload_body", "unload_method", "unload_path",
        "unload_timeout_s", "systemd_unit", "systemd_scope",  # api_swap, ollama
    },
}  # fmt: skip
PROFILE = {"engine": {"model", "flags", "env"}, "live": {"name", "memory_gib", "pin", "preload", "idle_unload_s"}}


class Other:
    """A value that is no other."""


def effects(table: dict[str, set[str]]) -> dict[str, str]:
    return {key: effect for effect, keys in table.items() for key in keys}


@pytest.mark.parametrize(
    ("owner", "table"), [(Config, CONFIG), (Profile, PROFILE), *((owner, ENGINE) for owner in ENGINE_TYPES.values())]
)
def test_every_key_has_its_effect(owner: type[Any], table: dict[str, set[str]]):
    said = {field.name: field.key.reload for field in keys_of(owner)}
    expected = effects(table)
    assert said == {name: expected.get(name, "is not in the table") for name in said}


def test_the_table_names_no_key_that_is_not_there():
    known = {field.name for owner in ENGINE_TYPES.values() for field in keys_of(owner)}
    assert effects(ENGINE).keys() == known
    assert effects(CONFIG).keys() == {field.name for field in keys_of(Config)}
    assert effects(PROFILE).keys() == {field.name for field in keys_of(Profile)}


def of(*engines: EngineSettings, **more: Any) -> Config:
    return Config(engines={e.name: e for e in engines}, **more)


def process(name: str = "a", **more: Any) -> GenericProcess:
    return GenericProcess(name=name, start_cmd=("x", "{port}"), **more)


def differing(settings: EngineSettings, key: str) -> Changes:
    changed: Any = replace(settings, **{key: Other()})
    return diff(of(settings), of(changed))


@pytest.mark.parametrize("key", sorted(effects(CONFIG).keys() - {"engines"}))
def test_a_key_at_the_top_counts_at_once_or_needs_a_restart(key: str):
    new: Any = replace(Config(), **{key: Other()})
    effect = effects(CONFIG)[key]
    assert diff(Config(), new) == (Changes(live=(key,)) if effect == "live" else Changes(restart=(key,)))


@pytest.mark.parametrize("kind", ["generic_process", "api_swap", "ollama", "systemd_unit"])
def test_a_key_of_an_engine_counts_at_once_or_changes_the_engine(kind: str):
    required = {"generic_process": {"start_cmd": ("x",)}, "systemd_unit": {"unit": "x"}}.get(kind, {})
    settings = ENGINE_TYPES[kind](name="a", base_url="http://x", **required)
    for field in keys_of(type(settings)):
        if field.name in ("type", "enabled", "profiles"):
            continue
        found = differing(settings, field.name)
        live = (f"engines.a.{field.name}",)
        is_live = effects(ENGINE)[field.name] == "live"
        assert found == (Changes(live=live) if is_live else Changes(changed=("a",))), field.name


def test_nothing_is_different_between_equals():
    assert diff(of(process(), default_model="a"), of(process(), default_model="a")).is_empty


def test_engines_come_and_go_by_name_or_by_enabled():
    old = of(process("a"), process("b"), process("c", enabled=False))
    new = of(process("b", enabled=False), process("c"), process("d"))
    assert diff(old, new) == Changes(added=("c", "d"), removed=("a", "b"))


def test_another_type_is_another_engine():
    ollama = Ollama(name="a", base_url="http://x")
    assert diff(of(process()), of(ollama)) == Changes(changed=("a",))
    assert diff(of(ollama), of(Remote(name="a", base_url="http://x"))) == Changes(changed=("a",))


def test_a_provider_that_moves_drains_nobody():
    old, new = Remote(name="a", base_url="http://x"), Remote(name="a", base_url="http://y", api_key="k")
    assert diff(of(old), of(new)) == Changes(moved=("a",), live=("engines.a.api_key",))


def test_a_provider_whose_key_is_there_now_counts_at_once():
    old, new = (Remote(name="a", base_url="http://x", unconfigured=is_so) for is_so in (True, False))
    assert diff(of(old), of(new)) == Changes(live=("engines.a.api_key",))


def profiles(**models: str) -> dict[str, Profile]:
    return {name: Profile(id=name, model=Path(model)) for name, model in models.items()}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"p": "x"}, {"p": "x", "q": "y"}, Changes(live=("engines.a.profiles",))),
        (
            {"p": "x", "q": "x"},
            {"p": "y", "q": "x"},
            Changes(changed_profiles=(("a", "p"),), live=("engines.a.profiles",)),
        ),
        ({"p": "x", "q": "x"}, {"p": "x"}, Changes(removed_profiles=(("a", "q"),), live=("engines.a.profiles",))),
        ({}, {"p": "x"}, Changes(changed=("a",))),
        ({"p": "x"}, {}, Changes(changed=("a",))),
    ],
)
def test_a_profile_changes_by_itself(old: dict[str, str], new: dict[str, str], expected: Changes):
    assert diff(of(process(profiles=profiles(**old))), of(process(profiles=profiles(**new)))) == expected


@pytest.mark.parametrize("key", sorted(effects(PROFILE)))
def test_a_key_of_a_profile_counts_at_once_or_changes_that_profile(key: str):
    old = profiles(p="x")["p"]
    new: Any = replace(old, **{key: Other()})
    found = diff(of(process(profiles={"p": old})), of(process(profiles={"p": new})))
    assert found.changed_profiles == ((("a", "p"),) if effects(PROFILE)[key] == "engine" else ())
    assert not found.changed


def test_names_are_no_matter_of_engines():
    old = of(process(), models=(Model(id="m", engine="a"),), aliases={"x": Alias(name="x", target="m")})
    new = of(process(), models=(Model(id="n", engine="a"),), aliases={"x": Alias(name="x", target="n")})
    assert diff(old, new) == Changes(live=("models", "aliases"))
