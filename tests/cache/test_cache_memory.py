"""The store in this process: bounded by bytes, each answer by time, all of an engine forgotten at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from enginerouter.cache.keys import Key
from enginerouter.cache.memory import ENTRY_BYTES, MemoryStore
from enginerouter.cache.store import Kept


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def kept(size: int) -> Kept:
    return Kept("application/json", b"x" * size)


def key(name: str, engine: str = "e") -> Key:
    return Key(engine, name)


async def test_the_least_recently_used_goes_first() -> None:
    store = MemoryStore(3 * (100 + ENTRY_BYTES), ttl_s=60)
    for name in "abc":
        store.put(key(name), kept(100))
    assert await store.get(key("a")) == kept(100)
    store.put(key("d"), kept(100))
    assert [name for name in "abcd" if await store.get(key(name))] == ["a", "c", "d"]


async def test_an_answer_is_given_until_its_time_is_over() -> None:
    clock = Clock()
    store = MemoryStore(10_000, ttl_s=60, now=clock)
    store.put(key("a"), kept(1))
    clock.now += 59.9
    assert await store.get(key("a")) is not None  # being asked for does not make it younger
    clock.now += 0.1
    assert await store.get(key("a")) is None
    assert (store.state().entries, store.state().bytes) == (0, 0)


async def test_a_newer_answer_replaces_the_older_one() -> None:
    store = MemoryStore(10_000, ttl_s=60)
    store.put(key("a"), kept(1))
    store.put(key("a"), kept(5))
    assert await store.get(key("a")) == kept(5)
    assert (store.state().entries, store.state().bytes) == (1, 5 + ENTRY_BYTES)


async def test_what_an_engine_said_is_forgotten_and_nothing_else() -> None:
    store = MemoryStore(10_000, ttl_s=60)
    store.put(key("a", "one"), kept(1))
    store.put(key("b", "two"), kept(2))
    store.forget("one")
    assert await store.get(key("a", "one")) is None
    assert await store.get(key("b", "two")) == kept(2)
    assert store.state().bytes == 2 + ENTRY_BYTES


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 3000)), max_size=30))
def test_it_is_never_larger_than_it_may_be(puts: list[tuple[str, int]]) -> None:
    store = MemoryStore(8000, ttl_s=60)
    last: dict[str, int] = {}
    for name, size in puts:
        store.put(key(name), kept(size))
        last[name] = size
        state = store.state()
        assert state.bytes is not None
        assert state.bytes <= 8000
        assert state.entries is not None
        assert state.entries <= len(last)


def test_what_is_packed_comes_back_and_nothing_else_does() -> None:
    one = Kept("application/json; charset=utf-8", b'{"a": 1}')
    raw = one.packed()
    assert Kept.unpacked(raw) == one
    assert Kept.unpacked(raw[:-1]) is None
    assert Kept.unpacked(raw.replace(b"1}", b"2}")) is None
    for garbage in (b"", b"x", b"ER\x01\n", b'{"data": []}', raw[1:], b"\0" * 64):
        assert Kept.unpacked(garbage) is None
