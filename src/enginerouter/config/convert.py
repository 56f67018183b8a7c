"""From plain data to the typed model: every value is checked against its field, and every misfit is reported.

Strict: nothing is coerced but whole numbers to fractions, and text where the model says so (`as_text`). A value that
does not fit is reported and its default stands in, so that later checks still find the other problems.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Union, get_args, get_origin

from enginerouter.config.engines import ENGINE_TYPES, EngineSettings
from enginerouter.config.forms import FORMS, NAME_FORMS, BadForm, split_command
from enginerouter.config.key import Key, KeyField, identity_of, keys_of
from enginerouter.config.report import At, did_you_mean
from enginerouter.config.source import Source
from enginerouter.errors import printable

# No time-out, size or count needs more, and timers break on far larger ones.
LARGEST: Final = 1_000_000_000

_INVALID: Final = object()


@dataclass(frozen=True, slots=True)
class Converter:
    """Makes objects of the model from the data of one source."""

    source: Source
    base_dir: Path

    def build(self, owner: type[Any], data: Any, at: At, **given: Any) -> Any:
        """An instance of `owner`, or None if what it cannot do without is missing or wrong (which is reported)."""
        report = self.source.report
        if not isinstance(data, dict):
            report.error(at, f"must be a mapping of keys, not {shown(data)}")
            return None
        fields = {field.name: field for field in keys_of(owner)}
        for name in data:
            if name not in fields:
                report.unknown_key(at, name, fields)
        values = dict(given)
        is_whole = True
        for field in fields.values():
            value = _INVALID
            if field.name in data:
                value = self.field(field, data[field.name], (*at, field.name))
            elif field.is_required:
                report.missing_key(at, field.name, field.key.doc)
            if value is not _INVALID:
                values[field.name] = value
            elif field.is_required:
                is_whole = False
            elif isinstance(field.default, Path):
                values[field.name] = self.base_dir / field.default
        return owner(**values) if is_whole else None

    def engine(self, name: str, data: Any, at: At, owner: type[EngineSettings] | None = None) -> Any:
        """The settings of one engine, of the class its `type` names."""
        report = self.source.report
        if not isinstance(data, dict):
            report.error(at, f"must be a mapping of keys, not {shown(data)}")
            return None
        if owner is None:
            kind = data.get("type")
            if kind is None:
                if (*at, "type") not in self.source.unset:
                    report.error(at, "the key 'type' is missing", f"one of: {', '.join(ENGINE_TYPES)}")
                return None
            if not isinstance(kind, str) or kind not in ENGINE_TYPES:
                hint = did_you_mean(str(kind), ENGINE_TYPES)
                report.error((*at, "type"), f"there is no engine type {shown(kind)}", hint)
                return None
            owner = ENGINE_TYPES[kind]
        return self.build(owner, data, at, name=name)

    def field(self, field: KeyField, value: Any, at: At) -> Any:
        """The value of one key, or `_INVALID`."""
        if field.key.no_effect:
            self.source.report.warn(at, f"has no effect here: {field.key.no_effect}")
        is_read = at not in self.source.unset and at not in self.source.broken
        if value is None and is_read and not _allows_none(field.hint):
            is_section = isinstance(field.default, Mapping) or dataclasses.is_dataclass(field.default)
            if is_section or field.default in ("", ()):
                return field.default
            hint = field.key.hint or ("" if field.is_required else "leave the key out to get its default")
            self.source.report.error(at, "has no value", hint)
            return _INVALID
        return self.value(value, field.hint, field.key, at)

    def value(self, value: Any, hint: Any, key: Key, at: At) -> Any:
        """`value` as `hint` wants it, or `_INVALID` after reporting why not."""
        if at in self.source.unset or at in self.source.broken:
            return _INVALID  # reported where it was read
        if _allows_none(hint):
            if value is None:
                return None
            options = [option for option in get_args(hint) if option is not type(None)]
            if isinstance(value, bool) and dataclasses.is_dataclass(options[0]):
                # `cache: off` and `cache: on` for a section that is off by default.
                return options[0]() if value and isinstance(options[0], type) else None
            if len(options) == 1:
                return self.value(value, options[0], key, at)
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            return self.object(value, hint, key, at)
        if get_origin(hint) is tuple:
            return self.items(value, get_args(hint)[0], key, at)
        if isinstance(get_origin(hint), type) and issubclass(get_origin(hint), Mapping):
            return self.entries(value, get_args(hint)[1], key, at)
        try:
            return self.scalar(value, hint, key, at)
        except BadForm as bad:
            self.source.report.error(at, bad.message, bad.hint or key.hint)
            return _INVALID

    def object(self, value: Any, owner: type[Any], key: Key, at: At) -> Any:
        identity = identity_of(owner, keys_of(owner))
        name = {identity: str(at[-1])} if identity else {}
        if key.shorthand and not isinstance(value, dict):
            if isinstance(value, list):
                self.source.report.error(at, "must be text or a mapping of keys, not a list")
                return _INVALID
            field = next(field for field in keys_of(owner) if field.name == key.shorthand)
            short = self.value(value, str, dataclasses.replace(field.key, nonempty=True), at)
            return _INVALID if short is _INVALID else owner(**name, **{key.shorthand: short})
        built = self.build(owner, value, at, **name)
        return _INVALID if built is None else built

    def items(self, value: Any, hint: Any, key: Key, at: At) -> Any:
        if isinstance(value, str) and key.is_command:
            try:
                words = split_command(value)
            except BadForm as bad:
                self.source.report.error(at, bad.message, bad.hint)
                return _INVALID
            value = list(words)
        if not isinstance(value, list):
            self.source.report.error(at, f"must be a list, not {shown(value, key)}", f"write {at[-1]}: [...]")
            return _INVALID
        if key.nonempty and not value:
            self.source.report.error(at, "must not be empty", key.hint)
            return _INVALID
        item_key = key if get_origin(hint) is tuple else dataclasses.replace(key, nonempty=False)
        items = {n: self.value(item, hint, item_key, (*at, n)) for n, item in enumerate(value)}
        kept = {n: item for n, item in items.items() if item is not _INVALID}
        self.source.kept[at] = tuple(kept)
        return tuple(kept.values()) if kept or not items else _INVALID

    def entries(self, value: Any, hint: Any, key: Key, at: At) -> Any:
        if not isinstance(value, dict):
            self.source.report.error(at, f"must be a mapping of keys, not {shown(value, key)}")
            return _INVALID
        found = {}
        for name, entry in value.items():
            if check := NAME_FORMS.get(key.form):
                try:
                    check(name)
                except BadForm as bad:
                    self.source.report.error((*at, name), bad.message, bad.hint)
                    continue
            item = self.value(entry, hint, key, (*at, name))
            if item is not _INVALID:
                found[name] = item
        return found

    def scalar(self, value: Any, hint: Any, key: Key, at: At) -> Any:
        """Raises BadForm."""
        if hint is Any:
            return _json_value(value)
        if isinstance(hint, types.UnionType) or get_origin(hint) is Union:
            options = [option for option in get_args(hint) if option is not type(None)]
            literals = [option for option in options if get_origin(option) is Literal]
            if isinstance(value, str) and literals and value in get_args(literals[0]):
                return value
            if isinstance(value, str):
                raise BadForm(f"must be {wanted(hint, key)}{_not(value, key)}")
            hint = next(option for option in options if option not in literals)
        if hint is bool:
            if not isinstance(value, bool):
                raise BadForm(f"must be true or false{_not(value, key)}", _unquote(value, "true or false"))
            return value
        if hint in (int, float):
            return _number(value, hint, key)
        if get_origin(hint) is Literal:
            return _choice(value, get_args(hint), key)
        text = self.text(value, key, at)
        if hint is Path:
            if not text or "\0" in text:
                raise BadForm("must be a path")
            # expanduser raises where no home is known; such a path stays as written.
            home = Path(text).expanduser() if text == "~" or text.startswith("~/") else Path(text)
            return self.base_dir / home
        return text

    def text(self, value: Any, key: Key, at: At) -> str:
        if not isinstance(value, str):
            takes_words = key.as_text or key.form == "signal" or at in self.source.expanded
            if isinstance(value, list | dict) or value is None or not takes_words:
                is_number = not isinstance(value, list | dict) and value is not None
                hint = (
                    "put it in quotes"
                    if is_number
                    else 'write "" for empty text'
                    if key.as_text and value is None
                    else ""
                )
                raise BadForm(f"must be text{_not(value, key)}", hint)
            value = self.source.texts[at]
        if key.nonempty and not value:
            raise BadForm("must not be empty")
        try:
            return FORMS[key.form](value) if key.form else value
        except BadForm as bad:
            quoted = "" if key.is_secret or key.form == "url" or not value else f"{shown(value)} "
            raise BadForm(quoted + bad.message, bad.hint) from None


def _allows_none(hint: Any) -> bool:
    return type(None) in get_args(hint) and get_origin(hint) in (types.UnionType, Union)


def _number(value: Any, hint: Any, key: Key) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadForm(f"must be {wanted(hint, key)}{_not(value, key)}", _unquote(value, "a number"))
    if hint is int and not isinstance(value, int):
        raise BadForm(f"must be {wanted(hint, key)}{_not(value, key)}")
    if not math.isfinite(value) if isinstance(value, float) else False:
        raise BadForm("must be a finite number", "null means no limit, where that is allowed")
    is_outside = (
        (key.ge is not None and value < key.ge)
        or (key.gt is not None and value <= key.gt)
        or (key.le is not None and value > key.le)
    )
    if is_outside:
        raise BadForm(f"must be {wanted(hint, key)}{_not(value, key)}")
    if abs(value) > LARGEST:
        raise BadForm(f"must be at most {LARGEST}")
    return float(value) if hint is float else value


def _choice(value: Any, choices: tuple[Any, ...], key: Key) -> Any:
    if isinstance(value, str):
        same = [choice for choice in choices if choice.lower() == value.lower()]
        if same:
            return same[0]
    one_of = " or ".join(repr(choice) for choice in choices) if len(choices) < 3 else ("one of " + ", ".join(choices))
    close = did_you_mean(value, choices) if isinstance(value, str) else ""
    raise BadForm(f"must be {one_of}{_not(value, key)}", close if close.startswith("did") else "")


def _json_value(value: Any) -> Any:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, float) and not math.isfinite(item):
            raise BadForm("must not contain NaN or infinity: JSON has no such numbers")
        pending += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    return value


def _unquote(value: Any, what: str) -> str:
    words = isinstance(value, str) and (value.replace(".", "", 1).isdigit() or value.lower() in ("true", "false"))
    return f"{what} is written without quotes" if words else ""


def wanted(hint: Any, key: Key) -> str:
    """What a value must be, in words: `a whole number from 0 to 65535`."""
    if _allows_none(hint):
        options = [option for option in get_args(hint) if option is not type(None)]
        return " or ".join([*(wanted(option, key) for option in options), "null"])
    if get_origin(hint) is Literal:
        return " or ".join(repr(choice) for choice in get_args(hint))
    if hint not in (int, float):
        return "true or false" if hint is bool else "text"
    noun = "a whole number" if hint is int else "a number"
    if key.ge is not None and key.le is not None:
        return f"{noun} from {key.ge:g} to {key.le:g}"
    if key.ge is not None:
        return f"{noun}, at least {key.ge:g}"
    return f"{noun} above {key.gt:g}" if key.gt is not None else noun


def shown(value: Any, key: Key | None = None) -> str:
    """A value as a message may quote it."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    if key is not None and key.is_secret:
        return "text" if isinstance(value, str) else "a number or boolean"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) > 10**18:
        return "a huge number"
    return repr(printable(value, 60)) if isinstance(value, str) else str(value)


def _not(value: Any, key: Key) -> str:
    return f", not {shown(value, key)}"
