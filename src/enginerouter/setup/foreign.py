"""Files of other programs: read safely, and told apart. What each becomes is in `llamaswap`, `gateway`, `manifest`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from enginerouter.config.source import MAX_BYTES, too_big
from enginerouter.errors import ConfigError, Problem, printable
from enginerouter.setup.emit import Document

Kind = Literal["llama-swap", "gateway", "manifest"]
KINDS: Final[tuple[Kind, ...]] = ("llama-swap", "gateway", "manifest")
_BOOL: Final = "tag:yaml.org,2002:bool"
_WHAT: Final = "a llama-swap configuration, a gateway's aliases.yaml or a manifest of profiles"


@dataclass(slots=True)
class Imported:
    """`notes`: what has no equal here, each with the place it stands at. `variables`: those that must be set."""

    document: Document = field(default_factory=Document)
    notes: list[str] = field(default_factory=list)
    variables: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Foreign:
    """One file's data, and where its problems go. Everything wrong is told at once."""

    path: Path
    data: Mapping[str, Any]
    problems: list[Problem] = field(default_factory=list)

    def wrong(self, at: str, message: str, hint: str = "") -> None:
        self.problems.append(Problem(message, path=at, file=str(self.path), hint=hint))

    def raise_problems(self) -> None:
        if self.problems:
            raise ConfigError(self.problems)

    # What a file should hold at a place; the empty value, and a problem, where it holds something else.

    def mapping(self, owner: Mapping[str, Any], key: str, at: str) -> dict[str, Any]:
        found = owner.get(key)
        if found is None:
            return {}
        if not isinstance(found, dict):
            self.wrong(f"{at}{key}", "must be a mapping")
            return {}
        return {str(name): value for name, value in found.items()}

    def words(self, owner: Mapping[str, Any], key: str, at: str) -> list[str]:
        found = owner.get(key)
        if found is None:
            return []
        if isinstance(found, str):
            return [found]
        if not isinstance(found, list) or any(isinstance(item, dict | list) or item is None for item in found):
            self.wrong(f"{at}{key}", "must be a list of text")
            return []
        return [as_text(item) for item in found]

    def text(self, owner: Mapping[str, Any], key: str, at: str) -> str:
        found = owner.get(key)
        if found is None:
            return ""
        if isinstance(found, dict | list):
            self.wrong(f"{at}{key}", "must be text")
            return ""
        return as_text(found)

    def number(self, owner: Mapping[str, Any], key: str, at: str) -> float | None:
        found = owner.get(key)
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, int | float):
            self.wrong(f"{at}{key}", f"must be a number, not {printable(str(found), 40)!r}")
            return None
        return found


def as_text(value: object) -> str:
    """A YAML scalar as other programs print it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


class _Loader(yaml.SafeLoader):
    """Safe, and of YAML 1.2, which other programs read: `on`, `yes` and dates are text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - made once, as its base class has it
        first: [(tag, rule) for tag, rule in rules if tag not in (_BOOL, "tag:yaml.org,2002:timestamp")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(_BOOL, re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF"))


def read(path: Path) -> Foreign:
    """Raises ConfigError for what is no mapping in YAML or JSON."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise _refused(path, "there is no such file") from error
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise _refused(path, "the file is not UTF-8 text", "save it as UTF-8") from error
    if len(raw) > MAX_BYTES:
        raise _refused(path, "the file is larger than 1 MiB")
    return Foreign(path, _parsed(text, path))


def _parsed(text: str, path: Path) -> Mapping[str, Any]:
    try:
        root = yaml.compose(text, Loader=_Loader)
        if root is not None and (why := too_big(root)):
            raise _refused(path, why)
        data = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else None
        raise ConfigError([Problem(f"not valid YAML: {error.problem}", file=str(path), line=line)]) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise _refused(path, f"not valid YAML: {printable(str(error))}") from error
    if not isinstance(data, dict):
        raise _refused(path, "the file must be a mapping of keys", f"it should be {_WHAT}")
    return {str(key): value for key, value in data.items()}


def _refused(path: Path, message: str, hint: str = "") -> ConfigError:
    return ConfigError([Problem(message, file=str(path), hint=hint)])


def kind_of(foreign: Foreign) -> Kind:
    """What kind of file this is. Raises ConfigError if it is none, or already ours."""
    data = foreign.data
    if isinstance(data.get("engines"), dict):
        raise _refused(
            foreign.path,
            "this is a configuration of enginerouter already, or of its predecessor: there is nothing to import",
            f"serve it with: enginerouter --config {shlex.quote(str(foreign.path))}",
        )
    if isinstance(data.get("models"), dict) or isinstance(data.get("peers"), dict):
        return "llama-swap"
    if _all_hold(data.get("aliases"), ("chain",)):
        return "gateway"
    if _all_hold(data.get("profiles"), ("model", "model_path")) or _all_hold(data, ("model", "model_path")):
        return "manifest"
    raise _refused(foreign.path, f"this is not {_WHAT}", "say which one it should be with --from")


def _all_hold(entries: Any, keys: Sequence[str]) -> bool:
    """Whether this is a mapping of mappings, one of which at least has such a key."""
    if not isinstance(entries, dict) or not entries:
        return False
    inner = list(entries.values())
    return all(isinstance(one, dict) for one in inner) and any(key in one for one in inner for key in keys)
