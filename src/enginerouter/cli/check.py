"""`enginerouter check` and `enginerouter schema`: read a configuration and say what is wrong; print its JSON Schema."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from enginerouter.config.load import load
from enginerouter.config.schema import schema_text
from enginerouter.errors import ConfigError, Problem


def check(path: Path) -> int:
    """Say whether `path` is a configuration that can be served: 0 and one line, or 1 and every problem."""
    try:
        loaded = load(path)
    except ConfigError as error:
        for problem in error.problems:
            print(f"config error: {problem}", file=sys.stderr)
        _warn(error.warnings)
        count = len(error.problems)
        print(f"{path}: {count} problem{'' if count == 1 else 's'}", file=sys.stderr)
        return 1
    _warn(loaded.warnings)
    config = loaded.config
    print(f"OK ({len(config.models)} model(s), engines: [{', '.join(config.engines)}])")
    return 0


def _warn(warnings: Iterable[Problem]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def schema() -> int:
    """Print the JSON Schema of the configuration."""
    print(schema_text(), end="")
    return 0
