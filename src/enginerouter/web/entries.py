"""One line of a catalogue, before it takes the shape that a client wants (`shapes/`)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from enginerouter.engines.model_facts import NOTHING, ModelFacts
from enginerouter.swap.phases import Phase

# Clients want a time; of what has no file, a constant one is as true as any.
CREATED = 1767225600
OWNER_OF_CHAINS = "enginerouter"


@dataclass(frozen=True, slots=True)
class Entry:
    """A name that a key may use, and all that is known of what it stands for.

    `owner` is its engine; `held_bytes` what it takes in memory, as far as that was measured; `expires_utc` when it
    leaves if nobody asks, None = not by itself. Times are seconds of UTC.
    """

    id: str
    owner: str
    display_name: str
    description: str = ""
    alias_of: str | None = None
    is_chain: bool = False
    is_remote: bool = False
    phase: Phase = Phase.COLD
    facts: ModelFacts = NOTHING
    held_bytes: int | None = None
    expires_utc: float | None = None

    @property
    def is_loaded(self) -> bool:
        return self.phase is Phase.READY

    @property
    def capabilities(self) -> tuple[str, ...]:
        return self.facts.all_capabilities

    @property
    def size_bytes(self) -> int:
        return self.facts.size_bytes or self.held_bytes or 0

    @property
    def modified_utc(self) -> float:
        return self.facts.modified_utc or CREATED

    @property
    def digest(self) -> str:
        """64 hexadecimal digits, those of the name where nobody knows others: clients compare and cut them."""
        return self.facts.digest or hashlib.sha256(self.id.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def architecture(self) -> str:
        """Never empty: it is a part of keys."""
        return self.facts.architecture or "unknown"

    @property
    def parameter_size(self) -> str:
        """Like `8.0B`, or empty."""
        if self.facts.parameter_size or self.facts.parameter_count is None:
            return self.facts.parameter_size
        count = self.facts.parameter_count
        unit, size = next(((u, s) for u, s in (("B", 10**9), ("M", 10**6), ("K", 1000)) if count >= s), ("", 1))
        return f"{count / size:.1f}{unit}"
