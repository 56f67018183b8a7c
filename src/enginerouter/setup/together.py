"""Which models another program lets run at the same time, as our lists of engines that may stay `together`.

llama-swap says it by groups, or by sets in a small language. Plain functions: names in, sets of names out. Like there,
every part of a set may run together as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

# Beyond this nobody reads the result, and the file asks for something else.
MOST_SETS = 200

Sets = list[frozenset[str]]


@dataclass(frozen=True, slots=True)
class Group:
    """A group of llama-swap. `swaps`: one of it at a time; `is_exclusive`: a start of one unloads other groups;
    `is_persistent`: other groups do not unload it."""

    members: tuple[str, ...]
    swaps: bool = True
    is_exclusive: bool = True
    is_persistent: bool = False

    def evicts(self, other: Group) -> bool:
        return self.is_exclusive and not other.is_persistent


def by_groups(groups: Sequence[Group], everybody: Collection[str]) -> tuple[Sets, list[tuple[str, str]]]:
    """The largest sets that may run together, and pairs that may only in one order (which we count as no)."""
    group_of = {member: group for group in groups for member in group.members}
    group_of |= {name: lone for name in everybody if name not in group_of for lone in [_DEFAULT]}
    friends: dict[str, set[str]] = {name: set() for name in everybody}
    one_way: list[tuple[str, str]] = []
    names = list(everybody)
    for n, first in enumerate(names):
        for second in names[n + 1 :]:
            one, other = group_of[first], group_of[second]
            if one is other:
                apart = one.swaps
            else:
                apart = one.evicts(other) or other.evicts(one)
                if one.evicts(other) != other.evicts(one):
                    one_way.append((first, second))
            if not apart:
                friends[first].add(second)
                friends[second].add(first)
    return largest_cliques(friends), one_way


_DEFAULT = Group(())


def largest_cliques(friends: Mapping[str, Collection[str]]) -> Sets:
    """Bron and Kerbosch, with a pivot; sets of one are left out, and no more than `MOST_SETS` are looked for."""
    found: Sets = []

    def grow(chosen: frozenset[str], may: set[str], done: set[str]) -> None:
        if len(found) > MOST_SETS:
            return
        if not may and not done:
            if len(chosen) > 1:
                found.append(chosen)
            return
        pivot = max(may | done, key=lambda name: len(may & set(friends[name])))
        for name in sorted(may - set(friends[pivot])):
            grow(chosen | {name}, may & set(friends[name]), done & set(friends[name]))
            may = may - {name}
            done = done | {name}

    grow(frozenset(), set(friends), set())
    return found


# --- sets: `(a | b) & c`, `+other & d`


class BadSet(ValueError):
    """An expression that cannot be read; its text says why."""


def by_sets(expressions: Mapping[str, str], names: Mapping[str, str]) -> Sets:
    """All combinations that the sets allow. `names`: what stands for what. Raises BadSet."""
    found: Sets = []
    for key in expressions:
        for one in _expanded(key, expressions, names, ()):
            if len(one) > 1 and one not in found:
                found.append(one)
    return _largest(found)


def _largest(sets: Iterable[frozenset[str]]) -> Sets:
    kept = list(sets)
    return [one for one in kept if not any(one < other for other in kept)]


def _expanded(key: str, expressions: Mapping[str, str], names: Mapping[str, str], above: tuple[str, ...]) -> Sets:
    if key in above:
        raise BadSet(f"the set {key!r} contains itself")
    if key not in expressions:
        raise BadSet(f"there is no set {key!r}")
    parser = _Parser(
        re.findall(r"[A-Za-z0-9_-]+|\S", expressions[key]),
        names,
        lambda other: _expanded(other, expressions, names, (*above, key)),
    )
    return parser.whole()


class _Parser:
    """`|` binds weaker than `&`, as there."""

    def __init__(self, words: list[str], names: Mapping[str, str], other_set: Callable[[str], Sets]) -> None:
        self._words = words
        self._names = names
        self._other_set = other_set
        self._depth = 0

    def whole(self) -> Sets:
        found = self._alternatives()
        if self._words:
            raise BadSet(f"{self._words[0]!r} is not expected here")
        return found

    def _alternatives(self) -> Sets:
        found = self._together()
        while self._next_is("|"):
            found = found + self._together()
        return found

    def _together(self) -> Sets:
        found = self._one()
        while self._next_is("&"):
            others = self._one()
            if len(found) * len(others) > MOST_SETS * 10:
                raise BadSet("it allows too many combinations")
            found = [one | other for one in found for other in others]
        return found

    def _one(self) -> Sets:
        if self._next_is("("):
            self._depth += 1
            if self._depth > 50:
                raise BadSet("it is nested too deeply")
            found = self._alternatives()
            if not self._next_is(")"):
                raise BadSet("a ')' is missing")
            self._depth -= 1
            return found
        is_other = self._next_is("+")
        if not self._words:
            raise BadSet("it ends too early")
        word = self._words.pop(0)
        if is_other:
            return self._other_set(word)
        if word not in self._names:
            raise BadSet(f"{word!r} is not among its vars")
        return [frozenset({self._names[word]})]

    def _next_is(self, word: str) -> bool:
        if self._words[:1] != [word]:
            return False
        self._words.pop(0)
        return True
