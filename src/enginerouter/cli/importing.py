"""`enginerouter import FILE [-o OUT]`: another program's file becomes ours."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import cast

from enginerouter.cli.setup_arguments import SetupArguments
from enginerouter.cli.writing import NotWritten, can_ask, may_write, write
from enginerouter.setup.foreign import Kind
from enginerouter.setup.importing import Result, import_file


def run_import(arguments: SetupArguments) -> int:
    """Raises ConfigError with everything that is wrong with the file."""
    target = arguments.output
    result = import_file(arguments.file, target or Path("config.yaml"), cast("Kind | None", arguments.kind))
    if target is not None:
        try:
            may_write(target, force=arguments.force, can_be_asked=can_ask(assume_yes=arguments.assume_yes))
            write(target, result.text)
        except NotWritten as refused:
            print(refused, file=sys.stderr)
            return 1
    if arguments.as_json:
        print(json.dumps(_told(result, target), ensure_ascii=False, indent=1))
    elif target is None:
        print(result.text, end="")
    _tell(arguments.file, target, result)
    return 0


def _told(result: Result, target: Path | None) -> dict[str, object]:
    return {
        "kind": result.kind,
        "written": str(target) if target is not None else None,
        "engines": list(result.engines),
        "no_equal": list(result.notes),
        "variables": list(result.variables),
        "warnings": [str(warning) for warning in result.warnings],
        **({"config": result.text} if target is None else {}),
    }


def _tell(file: Path, target: Path | None, result: Result) -> None:
    """For people; on standard error, which a pipe does not take."""
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if result.variables:
        print(f"these variables must be set for the router: {', '.join(result.variables)}", file=sys.stderr)
    count = len(result.engines)
    into = f" into {target}" if target is not None else ""
    print(f"imported {file} ({result.kind}){into}: {count} engine{'' if count == 1 else 's'}", file=sys.stderr)
    if target is not None:
        print(f"serve it with: enginerouter --config {shlex.quote(str(target))}", file=sys.stderr)
