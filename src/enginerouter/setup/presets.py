"""The presets: whole configurations, one file each, in `presets/` at the top of the repository.

A checkout reads them there; an installed package carries them inside (`setup.py` puts them there).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

import enginerouter
from enginerouter.config.report import did_you_mean
from enginerouter.errors import ConfigError, Problem

_SUFFIX: Final = ".yaml"
_TOP_KEY: Final = re.compile(r"^([a-z_]+):\s*$")


_EXAMPLE: Final = "config.example.yaml"


def _folder() -> Traversable:
    inside = files(enginerouter) / "presets"
    if inside.is_dir():
        return inside
    return Path(enginerouter.__file__).parents[2] / "presets"


def example() -> str:
    """The example configuration: beside the presets in the package, above them in a checkout."""
    inside = _folder() / _EXAMPLE
    return (inside if inside.is_file() else _folder() / ".." / _EXAMPLE).read_text("utf-8")


def names() -> list[str]:
    found = (entry.name for entry in _folder().iterdir())
    return sorted(name.removesuffix(_SUFFIX) for name in found if name.endswith(_SUFFIX) and name != _EXAMPLE)


def text_of(name: str) -> str:
    """Raises ConfigError for a preset that there is not."""
    known = names()
    if name not in known:
        hint = did_you_mean(name, known)
        if not hint:
            hint = f"known: {', '.join(known)}"
        raise ConfigError([Problem(f"there is no preset {name!r}", hint=hint)])
    return (_folder() / f"{name}{_SUFFIX}").read_text("utf-8")


def summary_of(name: str) -> str:
    """Its first comment line."""
    return text_of(name).partition("\n")[0].lstrip("# ")


def combined(wanted: Sequence[str]) -> str:
    """One configuration of several presets: what stands under the same key is put together, comments included.

    Raises ConfigError for a preset that there is not.
    """
    heads: list[str] = []
    sections: dict[str, list[str]] = {"engines": [], "models": []}
    for name in dict.fromkeys(wanted):
        head, found = _sections(text_of(name))
        heads.append(head)
        for key, lines in found:
            sections.setdefault(key, []).append(lines)
    body = [f"{key}:\n" + "\n".join(parts) for key, parts in sections.items() if parts]
    return "\n".join(heads) + "\n" + "\n".join(body)


def _sections(text: str) -> tuple[str, Iterator[tuple[str, str]]]:
    """What stands before the first key, and each top-level key with the lines below it."""
    lines = text.splitlines()
    starts = [n for n, line in enumerate(lines) if _TOP_KEY.match(line)]

    def parts() -> Iterator[tuple[str, str]]:
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
            yield lines[start].rstrip(": "), "\n".join(_moved_in(lines[start + 1 : end])).rstrip() + "\n"

    return "\n".join(lines[: starts[0]]).rstrip(), parts()


def _moved_in(lines: Sequence[str]) -> Iterator[str]:
    """Comments at the margin would end a reader's idea of a section: they move in with it."""
    for line in lines:
        yield f"  {line}" if line.startswith("#") else line
