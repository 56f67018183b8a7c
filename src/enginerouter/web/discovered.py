"""What engines say of their models, passed on: to the directory, to the state file, and – two with one name – the log.

With `discover.enabled` the last list of each engine is kept, so that a name is known after a restart of the router,
before its engine has answered or run. A list is forgotten when the command it came from has changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from enginerouter.config.engines import EngineSettings, GenericProcess
from enginerouter.config.model import Config
from enginerouter.engines.discovery import Discovery, ListsModels
from enginerouter.engines.loaded import Listing
from enginerouter.engines.served import ProcessModels
from enginerouter.errors import printable
from enginerouter.state import StateFile
from enginerouter.web.catalog import json_answer
from enginerouter.web.edge import EdgeCall
from enginerouter.web.naming import Naming
from enginerouter.web.shapes.control import DiscoveredModels

log = logging.getLogger(__name__)

SEEN = "seen_models"
# Longer than one engine is given to list its models.
DISCOVER_WITHIN_S = 6.0


class Discovered:
    """`listed` is the listener of `Discovery`; `recall` is called once, before it begins."""

    def __init__(
        self, config: Config, state: StateFile, naming: Naming, warned: set[tuple[str, str]] | None = None
    ) -> None:
        self._config = config
        self._state = state
        self._naming = naming
        # Pairs of engines of which the log has told; shared by all configurations of a router.
        self._warned = warned if warned is not None else set()

    def recall(self, sources: Mapping[str, ListsModels]) -> None:
        """Tell the directory what was listed before this start, and what the commands say."""
        if not self._config.discover.enabled:
            return
        kept = self._state.get(SEEN)
        for name, source in sources.items():
            listing = _read(kept.get(name), self._config.engines[name])
            if isinstance(source, ProcessModels):
                source.recall(listing.ids)
                listing = Listing(tuple(dict.fromkeys((*listing.ids, *source.told))))
            if listing.ids:
                self._pass_on(name, listing)

    def listed(self, engine: str, listing: Listing) -> None:
        self._pass_on(engine, listing)
        if self._config.discover.enabled:
            record = {
                "ids": list(listing.ids),
                "remote": sorted(listing.remote),
                "command": _command_of(self._config.engines[engine]),
            }
            if self._state.get(SEEN).get(engine) != record:
                self._state.put_entry(SEEN, engine, record)

    def _pass_on(self, engine: str, listing: Listing) -> None:
        self._naming.listed_by(engine, listing)
        for (winner, loser), models in self._naming.directory.collisions().items():
            if (winner, loser) not in self._warned:
                self._warned.add((winner, loser))
                more = f" and {len(models) - 1} more" if len(models) > 1 else ""
                log.warning(
                    "engines %r and %r both have model %s%s: %r serves it, as the first in the configuration; "
                    "ask for '%s/…' to mean the other",
                    winner,
                    loser,
                    printable(repr(models[0])),
                    more,
                    winner,
                    loser,
                )


class Discovering:
    """POST /admin/discover: ask every engine that can be asked now. Starts and loads nothing."""

    def __init__(self, naming: Naming, discovery: Discovery) -> None:
        self._naming = naming
        self._discovery = discovery

    async def discover(self, call: EdgeCall) -> web.StreamResponse:
        """`engines`: the ids by engine; `failed`: why one could not say; `collisions`: ids that two have."""
        await self._discovery.refresh(DISCOVER_WITHIN_S)
        directory = self._naming.directory
        failures = {name: self._discovery.failure_of(name) for name in self._discovery.engines}
        discovered: DiscoveredModels = {
            "engines": {name: list(directory.said_by(name)) for name in self._discovery.engines},
            "failed": {name: failure.message for name, failure in failures.items() if failure is not None},
            "collisions": [
                {"served_by": winner, "also_at": loser, "models": list(models)}
                for (winner, loser), models in directory.collisions().items()
            ],
        }
        return json_answer(discovered)


def _command_of(settings: EngineSettings) -> str:
    """What a list depends on, as a hash: commands may hold secrets."""
    command = settings.start_cmd if isinstance(settings, GenericProcess) else ()
    whole = json.dumps([settings.type, settings.base_url, *command])
    return hashlib.sha256(whole.encode(errors="surrogateescape")).hexdigest()[:16]


def _read(record: Any, settings: EngineSettings) -> Listing:
    """A kept list, if it is one, and of this engine as it is now."""
    if not isinstance(record, dict) or record.get("command") != _command_of(settings):
        return Listing(())
    ids, remote = record.get("ids"), record.get("remote")
    if not isinstance(ids, list) or not isinstance(remote, list):
        return Listing(())
    return Listing(tuple(i for i in ids if isinstance(i, str)), frozenset(i for i in remote if isinstance(i, str)))
