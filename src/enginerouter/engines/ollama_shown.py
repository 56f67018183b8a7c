"""What an Ollama daemon says of each of its models, asked once per digest: its list does not say the context."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from enginerouter.engines.loaded import Listing
from enginerouter.engines.model_facts import ModelFacts, known
from enginerouter.engines.said_facts import facts_in_show

SHOW_TIMEOUT_S = 2.0
# A catalogue waits a second for a list: what is not said within this is asked for with the next one.
ALL_WITHIN_S = 0.6
AT_ONCE = 4
Show = Callable[[str], Awaitable[dict[str, Any] | None]]


class Shown:
    """By name and digest: a model that was pulled anew is asked for again."""

    def __init__(self) -> None:
        self._facts: dict[tuple[str, str], ModelFacts] = {}

    async def completed(self, listing: Listing, show: Show) -> Listing:
        """The listing, with what `show` says of its models."""
        keys = {name: (name, facts.digest) for name, facts in listing.facts.items()}
        self._facts = {key: self._facts[key] for key in keys.values() if key in self._facts}
        missing = [key for key in keys.values() if key not in self._facts]
        if missing:
            await self._ask(missing, show)
        facts = {name: known(listing.facts[name], self._facts.get(key)) for name, key in keys.items()}
        return replace(listing, facts=facts)

    async def _ask(self, missing: Sequence[tuple[str, str]], show: Show) -> None:
        waiting = iter(missing)

        async def some() -> None:
            for key in waiting:
                if (document := await show(key[0])) is None:
                    return  # one that does not say it of one model will not of the others
                self._facts[key] = facts_in_show(document)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ALL_WITHIN_S):
                await asyncio.gather(*(some() for _ in range(min(AT_ONCE, len(missing)))))
