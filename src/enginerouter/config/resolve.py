"""What a built object still lacks: secrets from environment and files, dependent defaults, old spellings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enginerouter.config.engines import ApiSwap, Ds4, EngineSettings, GenericProcess, Ollama, Remote, SystemdUnit
from enginerouter.config.model import ApiKey, Model
from enginerouter.config.profiles import with_profiles
from enginerouter.config.report import At
from enginerouter.config.source import Source, see_file


def finish_engine(
    settings: EngineSettings, at: At, source: Source, base_dir: Path, environ: Mapping[str, str]
) -> EngineSettings | None:
    """The engine as the rest of the program sees it, or None after reporting why not."""
    if isinstance(settings, Ds4):
        modern = modern_ds4(settings)
        if modern is None:
            source.report.missing_key(at, "serve_script", "control: process launches it")
            return None
        settings = modern
    settings = _with_api_key(settings, at, source, environ)
    if isinstance(settings, ApiSwap | Ollama) and settings.ready_path is None:
        settings = dataclasses.replace(settings, ready_path=settings.health_path)
    if isinstance(settings, GenericProcess):
        settings = with_profiles(settings, at, source, environ)
    return settings


def _with_api_key(settings: EngineSettings, at: At, source: Source, environ: Mapping[str, str]) -> EngineSettings:
    report, is_remote = source.report, isinstance(settings, Remote)
    place = (*at, "api_key")
    has_variable = place in source.unset or place in source.expanded
    is_named = has_variable or settings.api_key_env is not None or settings.api_key is not None
    key = settings.api_key
    if settings.api_key_env is not None:
        if key is not None or has_variable:
            report.error((*at, "api_key_env"), "give api_key or api_key_env, not both")
        key = environ.get(settings.api_key_env)
        if not key and not is_remote:
            report.error((*at, "api_key_env"), f"the environment variable {settings.api_key_env} is not set or empty")
    if key and not _is_header_safe(key):
        report.error((*at, "api_key"), "the key contains white space or control characters and cannot be sent")
    return dataclasses.replace(
        settings,
        api_key=key or None,
        # `${NAME}` in api_key: the error of an unconfigured engine names that variable, too.
        api_key_env=settings.api_key_env or source.unset.get(place),
        unconfigured=is_remote and is_named and not key,
    )


def _is_header_safe(secret: str) -> bool:
    return secret.isascii() and secret.isprintable() and " " not in secret


def modern_ds4(old: Ds4) -> EngineSettings | None:
    """The engine an old `ds4` section means; None if it is to launch a script but names none."""
    shared = {field.name for field in dataclasses.fields(EngineSettings)} - {"type", "ready_path"}
    common: dict[str, Any] = {name: getattr(old, name) for name in shared}
    common["ready_path"] = old.ready_path or old.health_path
    if old.control == "systemd-user":
        return SystemdUnit(unit=old.systemd_user_unit, scope="user", **common)
    if not old.serve_script:
        return None
    return GenericProcess(start_cmd=(old.serve_script,), log_file=old.log_file, **common)


def finish_keys(keys: tuple[ApiKey, ...], source: Source, environ: Mapping[str, str]) -> tuple[ApiKey, ...]:
    """The keys with their secrets and names; a key whose secret cannot be had is reported and dropped."""
    raw = source.data.get("api_keys")
    finished: list[ApiKey] = []
    names: set[str] = set()
    secrets: set[str] = set()
    for n, key in zip(source.kept.get(("api_keys",), ()), keys, strict=False):
        at: At = ("api_keys", n)
        is_plain = not isinstance(raw[n], dict)
        secret = key.key if is_plain else _secret(key, at, raw[n], source, environ)
        if not secret:
            continue
        name = key.name or f"key-{n + 1}"
        if name in names:
            source.report.error(at, f"two keys are named {name!r}")
        if secret in secrets:
            source.report.error(at, "this key is given twice")
        names.add(name)
        secrets.add(secret)
        finished.append(dataclasses.replace(key, name=name, key=secret, admin=is_plain or key.admin))
    return tuple(finished)


def _secret(key: ApiKey, at: At, raw: Mapping[str, Any], source: Source, environ: Mapping[str, str]) -> str:
    report = source.report
    given = [name for name in ("key", "key_env", "key_file") if name in raw]
    if len(given) != 1:
        report.error(at, "give one of key, key_env, key_file" + (f", not {len(given)}" if given else ""))
        return ""
    if key.key_env is not None:
        secret = environ.get(key.key_env, "")
        if not secret:
            report.error((*at, "key_env"), f"the environment variable {key.key_env} is not set or empty")
        return secret
    if key.key_file is not None:
        try:
            see_file(key.key_file)
            secret = key.key_file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            report.error((*at, "key_file"), f"{key.key_file} cannot be read: {why}")
            return ""
        if not secret:
            report.error((*at, "key_file"), f"{key.key_file} is empty")
        return secret
    if not key.key and (*at, "key") not in source.unset:
        report.error((*at, "key"), "must not be empty")
    return key.key


def finish_models(models: tuple[Model, ...]) -> tuple[Model, ...]:
    return tuple(model if model.display_name else dataclasses.replace(model, display_name=model.id) for model in models)
