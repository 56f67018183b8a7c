"""What a model's settings change in a request: strip → default → set → thinking guard → the model's name.

Pure: a body as it goes upstream and the model's rules give another body; the first is never touched, so that every
target of a chain gets its own from the same original. Paths are dotted (`options.num_predict`); only objects are
walked into.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from enginerouter.dialects.thinking import Form, guard, has_chosen

Step = Literal["strip", "default", "set", "guard", "model"]
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ParamRules:
    """The settings of one model. `form`: how its engine is told not to think."""

    strip: tuple[str, ...] = ()
    default: Mapping[str, Any] = field(default_factory=dict)
    set: Mapping[str, Any] = field(default_factory=dict)
    no_thinking_below: int | None = None
    form: Form = "template"

    @property
    def is_empty(self) -> bool:
        return not (self.strip or self.default or self.set or self.no_thinking_below)


NO_RULES = ParamRules()


def of_translated(rules: ParamRules, asked: Mapping[str, Any], sent: Mapping[str, Any]) -> ParamRules:
    """The rules for a translated request: a choice that the other dialect has no word for is one all the same."""
    if rules.no_thinking_below is None or not has_chosen(asked) or has_chosen(sent):
        return rules
    return replace(rules, no_thinking_below=None)


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that was changed. `value` is what is there now (a strip leaves nothing)."""

    step: Step
    path: str
    value: Any = None


def changed(path: str, body: Json, rules: ParamRules, model: str) -> tuple[Json, list[Change]]:
    """The body for one target, and what was changed, in order. Without changes the very same body."""
    changes: list[Change] = []

    def write(step: Step, dotted: str, value: Any) -> None:
        nonlocal body
        if (after := _written(body, dotted.split("."), value)) is not body:
            body = after
            changes.append(Change(step, dotted, value))

    if not rules.is_empty:
        for dotted in rules.strip:
            if (after := _stripped(body, dotted.split("."))) is not body:
                body = after
                changes.append(Change("strip", dotted))
        for dotted, value in rules.default.items():
            if _is_free(body, dotted.split(".")):
                write("default", dotted, value)
        for dotted, value in rules.set.items():
            write("set", dotted, value)
        if rules.no_thinking_below is not None:
            for dotted, value in guard(path, body, rules.no_thinking_below, rules.form):
                write("guard", dotted, value)
    if body.get("model") != model:
        body = {**body, "model": model}
        changes.append(Change("model", "model", model))
    return body, changes


def _stripped(body: Json, steps: list[str]) -> Json:
    """Without what is at the path; the same object if there is nothing."""
    first, rest = steps[0], steps[1:]
    if first not in body:
        return body
    if not rest:
        return {name: value for name, value in body.items() if name != first}
    inner = body[first]
    if not isinstance(inner, dict) or (after := _stripped(inner, rest)) is inner:
        return body
    return {**body, first: after}


def _is_free(body: Json, steps: list[str]) -> bool:
    """Whether a default may be written: nothing is there, not even null, and nothing that is no object is above."""
    for step in steps[:-1]:
        inner = body.get(step)
        if inner is None:
            return True
        if not isinstance(inner, dict):
            return False
        body = inner
    return steps[-1] not in body


def _written(body: Json, steps: list[str], value: Any) -> Json:
    """With the value at the path, whatever was in its way; the same object if it was there."""
    first, rest = steps[0], steps[1:]
    if rest:
        inner = body.get(first)
        above: Json = inner if isinstance(inner, dict) else {}
        after = _written(above, rest, value)
        return body if after is inner else {**body, first: after}
    if first in body and _is_same(body[first], value):
        return body
    return {**body, first: value}


def _is_same(one: Any, other: Any) -> bool:
    """As JSON: to Python 1, 1.0 and true are equal."""
    return one == other and json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def told(changes: list[Change]) -> list[dict[str, Any]]:
    """The changes for people, in order."""
    return [
        {"step": change.step, "path": change.path, **({} if change.step == "strip" else {"value": change.value})}
        for change in changes
    ]
