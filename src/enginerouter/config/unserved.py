"""What this version accepts but does not serve yet. Each entry that a file uses gives one warning.

Take an entry out when its feature works. `*` stands for every engine, model, alias or key; `=value` for one value.
Without `=value` a key counts as used if it differs from its default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Final

from enginerouter.config.key import keys_of
from enginerouter.config.model import Config
from enginerouter.config.report import At, Report, dotted

UNSERVED: Final = (
    "engines.*.systemd_unit",
    "models.*.disable_thinking_below_max_tokens",
    "models.*.set_params",
    "models.*.default_params",
    "models.*.strip_params",
    "aliases.*.chain",
    "health",
    "cache",
)


def warn_unserved(config: Config, report: Report) -> None:
    """One warning for each feature in use that does nothing yet, at its first use."""
    for entry in UNSERVED:
        path, _, value = entry.partition("=")
        uses = list(_uses(config, path.split("."), value, ()))
        if uses:
            more = f" (also {', '.join(dotted(at) for at in uses[1:])})" if len(uses) > 1 else ""
            what = f"{path.rpartition('.')[2]}: {value}" if value else path.rpartition(".")[2]
            report.warn(uses[0], f"{what!r} is accepted, but not served by this version yet{more}")


def _uses(owner: Any, path: list[str], value: str, at: At) -> Iterator[At]:
    step, rest = path[0], path[1:]
    if step == "*":
        entries = owner.items() if isinstance(owner, Mapping) else enumerate(owner)
        for name, entry in entries:
            yield from _uses(entry, rest, value, (*at, name))
        return
    if not any(field.name == step for field in dataclasses.fields(owner)):
        return  # a key of another kind of engine
    found = getattr(owner, step)
    if rest:
        yield from _uses(found, rest, value, (*at, step))
    elif (found == value) if value else found != _default(type(owner), step):
        yield (*at, step)


def _default(owner: type[Any], name: str) -> Any:
    return next(field.default for field in keys_of(owner) if field.name == name)
