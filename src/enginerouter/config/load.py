"""The loader: a file becomes a `Config`, or a `ConfigError` with every problem in it.

Order: read the text, build the typed model, resolve secrets and old spellings, run the cross-checks. Each step goes on
after a problem, so that one run tells all.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginerouter.config.checks import check_config
from enginerouter.config.convert import Converter
from enginerouter.config.draft import Draft
from enginerouter.config.engines import LEGACY_SECTIONS, EngineSettings
from enginerouter.config.model import Config
from enginerouter.config.report import At
from enginerouter.config.resolve import finish_engine, finish_keys, finish_models
from enginerouter.config.source import MAX_BYTES, Source, read_source
from enginerouter.errors import ConfigError, Problem, printable


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that can be used, and what its author should know. `file` and `lines` are for further checks."""

    config: Config
    warnings: tuple[Problem, ...]
    file: str
    lines: Mapping[At, int]


def load(path: Path, environ: Mapping[str, str] = os.environ) -> Loaded:
    """Load a configuration file. Raises ConfigError with all problems."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError([_unreadable(path, error)]) from error
    try:
        # Windows editors put a byte order mark in front.
        text = raw[:MAX_BYTES].decode("utf-8-sig") if len(raw) <= MAX_BYTES else " " * (MAX_BYTES + 1)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        problem = Problem("the file is not UTF-8 text", file=str(path), line=line, hint="save it as UTF-8")
        raise ConfigError([problem]) from error
    loaded = load_text(text, base_dir=path.parent, file=str(path), environ=environ)
    return dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, path=path.absolute()))


def _unreadable(path: Path, error: OSError) -> Problem:
    if isinstance(error, FileNotFoundError):
        hint = "config.example.yaml is one to begin with, `enginerouter demo` needs none"
        return Problem("there is no such file", file=str(path), hint=hint)
    if isinstance(error, IsADirectoryError):
        return Problem("this is a folder, not a file", file=str(path))
    return Problem(f"cannot be read: {error.strerror or error}", file=str(path))


def load_text(
    text: str, *, base_dir: Path, file: str = "config.yaml", environ: Mapping[str, str] = os.environ
) -> Loaded:
    """Load a configuration from text; relative paths are relative to `base_dir`. Raises ConfigError."""
    source = read_source(text, file, environ)
    report = source.report
    if source.data is None and report.errors:
        raise ConfigError(report.errors)
    if not isinstance(source.data, dict):
        report.error((), "the file must be a mapping of keys", "for example: port: 8077")
        raise ConfigError(report.errors)
    _report_unset(source)
    base_dir = base_dir.absolute()
    draft = _build(source, Converter(source, base_dir), base_dir, environ)
    check_config(draft, report)
    if report.errors:
        raise ConfigError(_in_order(report.errors, file), _in_order(report.warnings, file))
    return Loaded(draft.config, tuple(_in_order(report.warnings, file)), file, source.lines)


def _in_order(problems: list[Problem], file: str) -> list[Problem]:
    """By line; those of other files (manifests) after those of this one."""
    return sorted(problems, key=lambda p: (p.file != file, p.file or "", p.line or 0))


def _report_unset(source: Source) -> None:
    engines = source.data.get("engines")
    for at, name in source.unset.items():
        if len(at) == 3 and at[0] == "engines" and at[2] == "api_key" and isinstance(engines, dict):
            engine = engines.get(str(at[1]))
            if isinstance(engine, dict) and engine.get("type") == "remote":
                continue
        source.report.error(
            at,
            f"the environment variable {name} is not set",
            f"set it, write ${{{name}:-default}}, or $$ for a plain $",
        )


def _build(source: Source, converter: Converter, base_dir: Path, environ: Mapping[str, str]) -> Draft:
    data: dict[str, Any] = dict(source.data)
    report = source.report
    raw_engines = data.pop("engines", None)
    legacy = {name: data.pop(name) for name in LEGACY_SECTIONS if name in data}
    engines: dict[str, EngineSettings] = {}
    names: set[str] = set()

    def add(name: str, settings: EngineSettings | None, at: tuple[str, ...]) -> None:
        names.add(name)
        if settings is not None:
            finished = finish_engine(settings, at, source, base_dir, environ)
            if finished is not None:
                engines[name] = finished

    if raw_engines is not None and not isinstance(raw_engines, dict):
        report.error(("engines",), "must be a mapping of engine names")
    elif raw_engines:
        for name in legacy:
            report.warn((name,), "ignored, because 'engines' is given", "remove this section")
        for name, settings in raw_engines.items():
            at = ("engines", name)
            if not name or "/" in name or not name.isprintable() or name != name.strip():
                report.error(at, f"{printable(name)!r} cannot be the name of an engine", "use letters, digits, - and _")
            add(name, converter.engine(name, settings, at), at)
    elif legacy or _names_legacy(data):
        # Without `engines:` older configs had both of these, unless disabled.
        for name, owner in LEGACY_SECTIONS.items():
            source.lines.setdefault(("engines", name), source.lines.get((name,), 1))
            section = {} if legacy.get(name) is None else legacy[name]
            add(name, converter.engine(name, section, (name,), owner), (name,))
    else:
        report.warn((), "there are no engines: nothing can be served", "add one under 'engines:'")

    config: Config = converter.build(Config, data, (), base_dir=base_dir)
    config = dataclasses.replace(
        config,
        engines=engines,
        api_keys=finish_keys(config.api_keys, source, environ),
        models=finish_models(config.models),
    )
    return Draft(config, frozenset(names), source.kept.get(("models",), ()))


def _names_legacy(data: Mapping[str, Any]) -> bool:
    models = data.get("models")
    return isinstance(models, list) and any(
        isinstance(model, dict) and model.get("engine") in LEGACY_SECTIONS for model in models
    )
