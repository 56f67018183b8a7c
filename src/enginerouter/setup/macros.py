"""The `${…}` of llama-swap: macros of the file and of a model, and variables of the environment, as ours.

Variables stay variables, so that no secret is copied into a file. Until the end they are marked by two characters
that no file holds; `finish` makes them ours and doubles every other `$`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from enginerouter.setup.emit import Raw
from enginerouter.setup.foreign import as_text

_MACRO: Final = re.compile(r"\$\{([^}]*)\}")
_ENV: Final = re.compile(r"env\.([A-Za-z_][A-Za-z0-9_]*)")
_OPEN, _CLOSE = "\ue000", "\ue001"
_MARKED: Final = re.compile(f"{_OPEN}([A-Za-z_][A-Za-z0-9_]*){_CLOSE}")
_LONGEST: Final = 1 << 16
_DEEPEST: Final = 20
PORT: Final = "PORT"


class UnknownMacro(ValueError):
    """Its text names the macro."""


class Macros:
    """The macros that hold at one place. `variables` collects the names of the environment that were met."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = {name: as_text(value) for name, value in values.items()}
        self.variables: set[str] = set()

    def with_more(self, values: Mapping[str, object]) -> Macros:
        more = Macros({**self._values, **values})
        more.variables = self.variables
        return more

    def filled(self, text: str, *, stay: Mapping[str, str]) -> str:
        """All macros replaced, `stay` by what it says. Raises UnknownMacro."""
        for _ in range(_DEEPEST):
            if not _MACRO.search(text):
                return text
            text = _MACRO.sub(lambda found: self._value(found[1].strip(), stay), text)
            if len(text) > _LONGEST:
                raise UnknownMacro("macros make it longer than 64 KiB")
        raise UnknownMacro("its macros contain each other")

    def _value(self, name: str, stay: Mapping[str, str]) -> str:
        if name in stay:
            return stay[name]
        if variable := _ENV.fullmatch(name):
            self.variables.add(variable[1])
            return f"{_OPEN}{variable[1]}{_CLOSE}"
        if name not in self._values:
            raise UnknownMacro(f"there is no macro '${{{name}}}'")
        return self._values[name]


def finish(text: str) -> str:
    """Text for our file: `Raw` where it holds a variable, else plain."""
    if not _MARKED.search(text):
        return text
    return Raw(_MARKED.sub(lambda found: f"${{{found[1]}}}", text.replace("$", "$$")))
