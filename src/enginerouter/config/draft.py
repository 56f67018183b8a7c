"""A configuration on its way through the cross-checks: built, but perhaps with parts left out that had problems."""

from __future__ import annotations

from dataclasses import dataclass

from enginerouter.config.model import Config


@dataclass(frozen=True, slots=True)
class Draft:
    """`engine_names` also has the engines that could not be built, so that one problem is not told twice.

    `model_positions` gives the place in the file of each model in the config.
    """

    config: Config
    engine_names: frozenset[str]
    model_positions: tuple[int, ...]
