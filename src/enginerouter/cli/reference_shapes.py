"""The answers of control routes as tables of the HTTP reference, made from their types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from enginerouter.web.shapes import control

_HEAD = """
## Answers of control routes

Times are seconds, `_unix` and `at` Unix seconds. A key marked *?* is not always there.

| route | answer |
| --- | --- |
"""
_WORDS: Mapping[Any, str] = {str: "text", int: "number", float: "number", bool: "yes or no", Any: "anything"}


def answers_text() -> str:
    """The routes with the names of their answers, then each answer with its keys."""
    routes = "".join(f"| `{route}` | {_named(answer)} |\n" for route, answer in control.ANSWERS.items())
    tables = "".join(_table(shape) for shape in _shapes())
    return _HEAD + routes + tables


def _shapes() -> list[Any]:
    """Every type that an answer is made of, once, each before those that it holds."""
    found: list[Any] = []
    waiting = list(control.ANSWERS.values())
    while waiting:
        shape = waiting.pop(0)
        if shape not in found:
            found.append(shape)
            waiting = [*(inner for hint in get_type_hints(shape).values() for inner in _inside(hint)), *waiting]
    return found


def _inside(hint: Any) -> Iterator[Any]:
    if is_typeddict(hint):
        yield hint
    for argument in get_args(hint):
        yield from _inside(argument)


def _table(shape: Any) -> str:
    rows = "".join(_row(key, hint) for key, hint in get_type_hints(shape, include_extras=True).items())
    return f"\n### {shape.__name__}\n\n{shape.__doc__}\n\n| key | value | what |\n| --- | --- | --- |\n{rows}"


def _row(key: str, hint: Any) -> str:
    mark, said = "", ""
    while (origin := get_origin(hint)) in (NotRequired, Annotated):
        if origin is NotRequired:
            mark = " *?*"
        else:
            said = get_args(hint)[1]
        hint = get_args(hint)[0]
    return f"| `{key}`{mark} | {_words(hint)} | {said or '–'} |\n"


def _words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join("null" if a is NoneType else _words(a) for a in arguments)
    if origin is Literal:
        return ", ".join(f"`{a}`" for a in arguments)
    if origin is list:
        return f"list of {_words(arguments[0])}"
    if origin is dict:
        return f"object of {_words(arguments[1])}"
    return _named(hint) if is_typeddict(hint) else _WORDS[hint]


def _named(shape: Any) -> str:
    return f"[{shape.__name__}](#{shape.__name__.lower()})"
