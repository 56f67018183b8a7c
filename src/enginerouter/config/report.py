"""Where the loader and its checks put what they find, so that all of it is reported at once.

A place in the file is a tuple of keys and list positions (`At`); the report turns it into a dotted path and a line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from enginerouter.errors import Problem, printable

At = tuple[str | int, ...]


@dataclass(slots=True)
class Report:
    """Errors and warnings of one load. `lines` gives the line of every place in the file."""

    file: str
    lines: Mapping[At, int] = field(default_factory=dict)
    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    _wrong: set[At] = field(default_factory=set)
    _meant: set[At] = field(default_factory=set)

    def error(self, at: At, message: str, hint: str = "") -> None:
        self.errors.append(self._problem(at, message, hint))
        self._wrong.add(at)

    def warn(self, at: At, message: str, hint: str = "") -> None:
        self.warnings.append(self._problem(at, message, hint))

    def unknown_key(self, at: At, name: str, known: Iterable[str]) -> None:
        """Report a key that does not exist, with the one it is probably meant to be."""
        hint = did_you_mean(name, known)
        self.error((*at, name), "unknown key", hint)
        self._meant.update((*at, key) for key in known if hint == meant(key))

    def missing_key(self, at: At, name: str, hint: str) -> None:
        """Report a key that must be given, unless a misspelling of it was reported."""
        if (*at, name) not in self._meant:
            self.error(at, f"the key {name!r} is missing", hint)

    def is_wrong(self, at: At) -> bool:
        """Whether an error was reported at this very place."""
        return at in self._wrong

    def _problem(self, at: At, message: str, hint: str) -> Problem:
        line = next((self.lines[at[:n]] for n in range(len(at), -1, -1) if at[:n] in self.lines), None)
        return Problem(message, path=dotted(at), file=self.file, line=line, hint=hint)


def dotted(at: At) -> str:
    """`("models", 0, "id")` → `models[0].id`."""
    text = ""
    for part in at:
        text += f"[{part}]" if isinstance(part, int) else f".{printable(part)}" if text else printable(part)
    return text


def meant(word: str) -> str:
    return f"did you mean {word!r}?"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that names the closest known word, else all of a few, else nothing."""
    words = list(dict.fromkeys(known))
    close = get_close_matches(word, words, n=1, cutoff=0.7) or get_close_matches(
        word.lower(), [w for w in words if w == w.lower()], n=1, cutoff=0.7
    )
    if close:
        return meant(close[0])
    return f"known: {', '.join(sorted(words))}" if 0 < len(words) <= 12 else ""
