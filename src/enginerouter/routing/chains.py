"""From a chain to its entries: chains within it take their place. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from enginerouter.config.model import Alias


def flatten(alias: Alias, chain_of: Callable[[str], Alias | None]) -> Iterator[tuple[str, bool]]:
    """Every entry that is no chain itself, in order, and whether one of the chains around it is `local_only`.

    `chain_of` gives the chain that an entry means, or None. A chain that was gone through already adds nothing, so
    neither a circle nor chains that double at every step take long.
    """
    done = {(alias.name, alias.local_only)}
    pending: list[tuple[Alias, bool, Iterator[str]]] = [(alias, alias.local_only, iter(alias.chain))]
    while pending:
        _, stays_local, entries = pending[-1]
        entry = next(entries, None)
        if entry is None:
            pending.pop()
            continue
        inner = chain_of(entry)
        if inner is None:
            yield entry, stays_local
            continue
        inner_stays = stays_local or inner.local_only
        if (inner.name, inner_stays) not in done:
            done.add((inner.name, inner_stays))
            pending.append((inner, inner_stays, iter(inner.chain)))
