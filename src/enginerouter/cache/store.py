"""What a store of answers promises, and the form of an answer in it."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

from enginerouter.cache.keys import Key

_MAGIC = b"ER\x01\n"
_SUM_BYTES = 16


@dataclass(frozen=True, slots=True)
class Kept:
    """A whole answer of status 200."""

    content_type: str
    body: bytes

    def packed(self) -> bytes:
        """For stores that hold bytes: a mark, a checksum, the type with its length, the body."""
        kind = self.content_type.encode("latin-1", "replace")
        rest = len(kind).to_bytes(2, "big") + kind + self.body
        return _MAGIC + blake2b(rest, digest_size=_SUM_BYTES).digest() + rest

    @classmethod
    def unpacked(cls, raw: bytes) -> Kept | None:
        """None for bytes that are no answer of ours, or not all of one."""
        start = len(_MAGIC) + _SUM_BYTES
        rest = raw[start:]
        if not raw.startswith(_MAGIC) or blake2b(rest, digest_size=_SUM_BYTES).digest() != raw[len(_MAGIC) : start]:
            return None
        end = 2 + int.from_bytes(rest[:2], "big")
        return cls(rest[2:end].decode("latin-1"), rest[end:])


@dataclass(frozen=True, slots=True)
class StoreState:
    """For status and metrics. `entries` and `bytes` are None where only the store itself knows."""

    name: str
    is_up: bool = True
    entries: int | None = None
    bytes: int | None = None


class Store(Protocol):
    """Nothing here raises: a store that fails has no answer."""

    async def get(self, key: Key) -> Kept | None: ...

    def put(self, key: Key, kept: Kept) -> None:
        """Keep it, perhaps a moment later, perhaps not at all."""

    def forget(self, engine: str) -> None:
        """Drop what this engine answered."""

    def state(self) -> StoreState: ...

    async def close(self) -> None: ...
