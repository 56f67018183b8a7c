"""Files of other programs, turned into ours: which module does which kind, and the proof that the result loads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from enginerouter.config.load import load_text
from enginerouter.errors import Problem
from enginerouter.setup import gateway, llamaswap, manifest
from enginerouter.setup.foreign import Foreign, Imported, Kind, kind_of, read

_CONVERTERS: Final[Mapping[Kind, Callable[[Foreign], Imported]]] = MappingProxyType(
    {"llama-swap": llamaswap.convert, "gateway": gateway.convert, "manifest": manifest.convert}
)


@dataclass(frozen=True, slots=True)
class Result:
    """`text` loads. `notes` have no equal here; `variables` must be set; `warnings` are the loader's."""

    kind: Kind
    text: str
    notes: tuple[str, ...]
    variables: tuple[str, ...]
    warnings: tuple[Problem, ...]
    engines: tuple[str, ...]


def import_file(path: Path, target: Path, kind: Kind | None = None, environ: Mapping[str, str] = os.environ) -> Result:
    """What `path` becomes as the configuration `target`. Raises ConfigError with every problem."""
    foreign = read(path)
    kind = kind or kind_of(foreign)
    imported = _CONVERTERS[kind](foreign)
    foreign.raise_problems()
    text = imported.document.text()
    # What is set where the router will run need not be set here.
    stand_in = dict.fromkeys(imported.variables, "set-me")
    loaded = load_text(text, base_dir=target.absolute().parent, file=str(target), environ={**stand_in, **environ})
    return Result(
        kind,
        text,
        tuple(imported.notes),
        tuple(sorted(imported.variables)),
        loaded.warnings,
        tuple(loaded.config.engines),
    )
