"""Who made which stored response: `/v1/responses/{id}` goes back to that engine, and only for the key that made it."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass

from enginerouter.errors import NotFound, NotResident, printable
from enginerouter.routing.directory import is_permitted
from enginerouter.routing.target import Target
from enginerouter.web.ask import Ask
from enginerouter.web.keys import Identity

MAX_OWNED = 10_000
LOOK_BYTES = 4096
_ID = re.compile(rb'"id"\s*:\s*"(resp_[A-Za-z0-9_-]{1,200})"')


@dataclass(frozen=True, slots=True)
class _Owned:
    """`named`: what the client called the target."""

    target: Target
    key: str
    named: str


class ResponseOwners:
    """The last 10,000 response ids, by what their answers said; in memory only."""

    def __init__(self) -> None:
        self._owned: OrderedDict[str, _Owned] = OrderedDict()

    def note(self, first_bytes: bytes, target: Target, key: str, ask: Ask) -> bool:
        """Remember the id in the first bytes of an answer of `/v1/responses`; False if it is not in them yet."""
        found = _ID.search(first_bytes, 0, LOOK_BYTES)
        if found is None:
            return len(first_bytes) >= LOOK_BYTES
        before = self._owned.get(ask.previous_response_id or "")
        named = before.named if before is not None else ask.model or target.asked
        self._owned[found[1].decode()] = _Owned(target, key, named)
        if len(self._owned) > MAX_OWNED:
            self._owned.popitem(last=False)
        return True

    def known(self, response_id: str, identity: Identity) -> Target | None:
        """Who holds a response, or None for an id that nobody told us of (one of before a restart).

        Raises NotFound for another key's, with which its engine would go on; and where a reload has taken from the key
        what made it.
        """
        owned = self._owned.get(response_id)
        if owned is None:
            return None
        if owned.key != identity.name or not is_permitted(owned.target, owned.named, identity.may_name):
            raise _not_known(response_id)
        return owned.target

    def owner(self, response_id: str, identity: Identity) -> Target:
        """Raises NotFound for ids that are unknown, or not this key's: the two look alike."""
        target = self.known(response_id, identity)
        if target is None:
            raise _not_known(response_id)
        return target

    def not_resident(self, response_id: str, target: Target) -> NotResident:
        return NotResident(
            f"response {printable(response_id)!r} is held by {target.label}, which is not loaded; "
            "looking at it does not load an engine"
        )


def _not_known(response_id: str) -> NotFound:
    return NotFound(f"no response {printable(response_id)!r} is known here; ids are forgotten on a restart")
