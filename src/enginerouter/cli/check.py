"""`enginerouter check` and `enginerouter schema`: read a configuration and say what is wrong; print its JSON Schema."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from pathlib import Path

from enginerouter.config.engines import GenericProcess
from enginerouter.config.model import Config
from enginerouter.config.schema import schema_text
from enginerouter.errors import ConfigError, Problem
from enginerouter.swap.held import gib
from enginerouter.swap.pick import Picked
from enginerouter.web.machine import load_here


def check(path: Path) -> int:
    """Say whether `path` is a configuration that can be served: 0 and one line, or 1 and every problem."""
    try:
        loaded = load_here(path)
    except ConfigError as error:
        for problem in error.problems:
            print(f"config error: {problem}", file=sys.stderr)
        _warn(error.warnings)
        count = len(error.problems)
        print(f"{path}: {count} problem{'' if count == 1 else 's'}", file=sys.stderr)
        return 1
    config = loaded.config
    _warn(loaded.warnings)
    try:
        memory = asyncio.run(_memory(config.memory_source))
    except ConfigError as error:
        print("\n".join(f"config error: {problem}" for problem in error.problems), file=sys.stderr)
        return 1
    print(memory)
    print(f"OK ({_count_models(config)} model(s), engines: [{', '.join(config.engines)}])")
    return 0


def _count_models(config: Config) -> int:
    """Those that the configuration names. An engine of which it names none serves its own name."""
    names = {(model.engine, model.id) for model in config.models}
    for engine in config.engines.values():
        profiles = engine.profiles if isinstance(engine, GenericProcess) else ()
        own = {(engine.name, name) for name in (*engine.served_models, *profiles)}
        if not own and not any(model.engine == engine.name for model in config.models):
            own = {(engine.name, engine.name)}
        names |= own
    return len(names)


def _warn(warnings: Iterable[Problem]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


async def _memory(wanted: str) -> str:
    """Where memory would be read on this machine, and why. Raises ConfigError if what is asked for is not here."""
    source = Picked(wanted)
    try:
        await source.start()
        await source.refresh()
        available = source.available()
    finally:
        await source.close()
    for warning in source.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    said = f"{gib(available)} available" if available is not None else source.problem or "not read"
    return f"memory: {source.name} – {source.why}; {said}"


def schema() -> int:
    """Print the JSON Schema of the configuration."""
    print(schema_text(), end="")
    return 0
