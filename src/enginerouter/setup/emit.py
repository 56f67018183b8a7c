"""Writing a configuration: plain data with comments becomes YAML that our own loader reads back as the same data.

Names from elsewhere are quoted where YAML would read something else into them (`on`, `1.5`, `0x1F`), a plain `$` is
doubled, and nothing is folded where that could change it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from enginerouter.errors import printable

_WIDTH = 112


class Raw(str):
    """Text in which `${VAR}` means the variable."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Noted:
    """An entry with comment lines above it, and lines of comment that stand for keys it cannot have."""

    value: Any
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Document:
    """A configuration in the making. `head` are the comment lines at its top; sections keep their order."""

    head: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    engines: dict[str, Noted] = field(default_factory=dict)
    models: list[Noted] = field(default_factory=list)
    aliases: dict[str, Noted] = field(default_factory=dict)

    def text(self) -> str:
        lines = [*_comment(self.head, 0), ""]
        for key, value in self.settings.items():
            lines += _pair(key, value, 0)
        for key, entries in (("engines", self.engines), ("aliases", self.aliases)):
            if key == "aliases" and self.models:
                lines += ["", "models:", *(line for entry in self.models for line in _item(entry))]
            if entries:
                lines += ["", f"{key}:"]
                for n, (name, entry) in enumerate(entries.items()):
                    lines += ([""] if n and key == "engines" else []) + [*_entry(name, entry)]
        return "\n".join(lines).strip("\n") + "\n"


def _entry(name: str, entry: Noted) -> Iterator[str]:
    yield from _comment(entry.notes, 2)
    if isinstance(entry.value, Mapping) and not _is_short(entry.value):
        yield f"  {_scalar(name)}:"
        for key, value in entry.value.items():
            yield from _pair(key, value, 4)
    else:
        yield from _pair(name, entry.value, 2)


def _item(entry: Noted) -> Iterator[str]:
    yield from _comment(entry.notes, 2)
    lines = [line for key, value in entry.value.items() for line in _pair(key, value, 4)]
    yield "  - " + lines[0].lstrip()
    yield from lines[1:]


def _is_short(value: Mapping[str, Any]) -> bool:
    """Fits on one line with room to read."""
    return not any(isinstance(inner, Mapping | Noted) for inner in value.values()) and len(_flow(value)) < 72


def _pair(key: str, value: Any, indent: int) -> list[str]:
    if isinstance(value, Noted):
        return [*_comment(value.notes, indent), *_pair(key, value.value, indent)]
    head = " " * indent + _scalar(key) + ":"
    if not isinstance(value, Mapping | list | tuple):
        return [f"{head} {_scalar(_plain(value))}"]
    flow = _flow(value)
    if not value or len(head) + len(flow) < _WIDTH:
        return [f"{head} {flow}"]
    inner = " " * (indent + 2)
    if isinstance(value, Mapping):
        return [head, *(line for k, v in value.items() for line in _pair(k, v, indent + 2))]
    if all(isinstance(item, str) for item in value):
        # A command: words side by side, an option with its value.
        return [head + " [", *_wrapped([_flow(item) for item in value], indent + 2), " " * indent + "]"]
    return [head, *(f"{inner}- {_flow(item)}" for item in value)]


def _wrapped(words: Sequence[str], indent: int) -> Iterator[str]:
    line = ""
    for n, word in enumerate(words):
        is_option = word.startswith(("-", "'-", '"-')) and n > 0
        if line and (is_option or len(line) + len(word) > _WIDTH - indent):
            yield " " * indent + line.rstrip()
            line = ""
        line += word + ", "
    yield " " * indent + line.rstrip().rstrip(",")


def _comment(notes: Sequence[str], indent: int) -> Iterator[str]:
    for note in notes:
        safe = printable(note, 2000)
        yield from textwrap.wrap(
            safe, _WIDTH, initial_indent=" " * indent + "# ", subsequent_indent=" " * indent + "# ",
            break_long_words=False, break_on_hyphens=False,
        ) or [" " * indent + "#"]  # fmt: skip


# --- scalars


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_raw(dumper: yaml.SafeDumper, text: Raw) -> yaml.Node:
    # Quoted: a variable that holds digits stays text.
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style='"')


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # In single quotes some line separators of Unicode would be folded into spaces.
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(Raw, _represent_raw)
_Dumper.add_representer(str, _represent_text)


def _plain(value: Any) -> Any:
    if isinstance(value, Raw):
        return value
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def _flow(value: Any) -> str:
    """On one line, as it may stand inside of brackets."""
    inside: str = yaml.dump(
        [_plain(value)], Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=1 << 30, sort_keys=False
    )
    return inside.strip().removeprefix("[").removesuffix("]")


def _scalar(value: Any) -> str:
    """A key, or what stands behind one, on one line. Keys know no variables, so nothing is doubled here."""
    text: str = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=1 << 30)
    return text.removesuffix("\n").removesuffix("\n...")
