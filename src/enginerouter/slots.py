"""The word that everything shares: a slot is what can be resident in memory."""

from __future__ import annotations

from typing import NamedTuple


class SlotId(NamedTuple):
    """An engine, or an (engine, model) pair where changing the model needs a reload. Prints as `engine[/model]`."""

    engine: str
    model: str | None = None

    def __str__(self) -> str:
        return self.engine if self.model is None else f"{self.engine}/{self.model}"
