"""From YAML text to plain data, with the line of every key and value.

Goes through `yaml.compose` with the safe loader, so that no tag makes an object. Duplicate keys are refused, aliases
and `<<` merges are limited in what they may expand to, `${VAR}` is replaced in values. Knows nothing of the model.
"""

from __future__ import annotations

import errno
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from enginerouter.config.report import At, Report
from enginerouter.errors import printable

MAX_BYTES = 1 << 20
MAX_NODES = 100_000
MAX_DEPTH = 50

_TAG = "tag:yaml.org,2002:"
# `$$`, or `${…}` with whatever stands inside; judged afterwards so that a bad name gets a message.
_DOLLAR = re.compile(r"\$\$|\$\{([^}]*)\}|\$\{")
_VARIABLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


@dataclass(slots=True)
class Source:
    """What the file says. `texts` has the words of scalars that are not strings; `expanded` those with a variable."""

    report: Report
    data: Any = None
    lines: dict[At, int] = field(default_factory=dict)
    texts: dict[At, str] = field(default_factory=dict)
    expanded: set[At] = field(default_factory=set)
    unset: dict[At, str] = field(default_factory=dict)
    # Values that could not be read, reported already.
    broken: set[At] = field(default_factory=set)
    # For lists that were converted: the positions of the items that could be.
    kept: dict[At, tuple[int, ...]] = field(default_factory=dict)


def read_source(text: str, file: str, environ: Mapping[str, str]) -> Source:
    """Parse `text`. Problems go to the report of the answer; after a syntax error its data is None."""
    source = Source(Report(file))
    source.report.lines = source.lines
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        source.report.error((), "the file is larger than 1 MiB")
        return source
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        _report_syntax(source, error)
        return source
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, int(error.position)) + 1
        source.lines[()] = line
        source.report.error((), f"the character {chr(int(error.character))!r} is not allowed in YAML")
        return source
    except RecursionError:
        source.report.error((), "the file is nested too deeply")
        return source
    if root is None:
        source.data = {}
        return source
    if why := too_big(root):
        source.report.error((), why)
        return source
    source.data = _Reader(source, environ).read(root, ())
    return source


class NotAFile(OSError):
    """A pipe or a device: it would be waited for, perhaps for ever, and a reload with it."""


def see_file(path: Path) -> None:
    """Raises NotAFile, and OSError where nothing can be seen."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise NotAFile(errno.EINVAL, "it is a pipe or a device, not a file")


def _report_syntax(source: Source, error: yaml.MarkedYAMLError) -> None:
    mark = error.problem_mark or error.context_mark
    if mark is not None:
        source.lines[()] = mark.line + 1
    what = (error.problem or "unreadable").strip().removeprefix("but ")
    context = f" ({error.context.strip()})" if error.context else ""
    hint = ""
    if "\\t" in what:
        hint = "indent with spaces, not tabs"
    elif "got '{'" in what or "got '}'" in what:
        hint = "put ${...} in quotes inside [...] and {...}"
    elif "mapping values are not allowed" in what:
        hint = "put a value that contains ': ' in quotes"
    elif "found another document" in what:
        hint = "the file must hold one document: remove the '---' line"
    source.report.error((), f"not valid YAML: {printable(what)}{printable(context)}", hint)


def too_big(root: Node) -> str:
    """Why the tree must not be expanded, or "". Counts shared nodes as often as aliases repeat them."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: Node, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise _Refused("the file is nested too deeply")
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in open_nodes:
            raise _Refused("an alias contains itself")
        open_nodes.add(id(node))
        total = 1
        for child in _children(node):
            total += size(child, depth + 1)
            if total > MAX_NODES:
                raise _Refused(f"aliases expand to more than {MAX_NODES} values")
        open_nodes.discard(id(node))
        sizes[id(node)] = total
        return total

    try:
        size(root, 0)
    except _Refused as refused:
        return str(refused)
    return ""


class _Refused(Exception):
    """Ends a walk over the tree; its text is the reason."""


def _children(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, SequenceNode) else []


@dataclass(slots=True)
class _Reader:
    """One walk over the tree, filling a Source."""

    source: Source
    environ: Mapping[str, str]

    def read(self, node: Node, at: At) -> Any:
        self.source.lines.setdefault(at, node.start_mark.line + 1)
        if isinstance(node, MappingNode) and node.tag == _TAG + "map":
            return self.mapping(node, at)
        if isinstance(node, SequenceNode) and node.tag == _TAG + "seq":
            return [self.read(child, (*at, n)) for n, child in enumerate(node.value)]
        if isinstance(node, ScalarNode):
            return self.scalar(node, at)
        self.source.report.error(at, f"the tag {_tag_name(node)} is not supported")
        self.source.broken.add(at)
        return None

    def mapping(self, node: MappingNode, at: At) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, (key_node, value_node) in self.pairs(node, at).items():
            here = (*at, key)
            self.source.lines[here] = key_node.start_mark.line + 1
            found[key] = self.read(value_node, here)
        return found

    def pairs(self, node: MappingNode, at: At) -> dict[str, tuple[Node, Node]]:
        """The mapping's own pairs and those merged in by `<<`; its own win, then the earlier merge."""
        own: dict[str, tuple[Node, Node]] = {}
        merged: dict[str, tuple[Node, Node]] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                for part in value_node.value if isinstance(value_node, SequenceNode) else [value_node]:
                    if not isinstance(part, MappingNode):
                        self.source.report.error(at, "'<<' must name a mapping")
                        continue
                    merged = {**self.pairs(part, at), **merged}
                continue
            key = self.key(key_node, at)
            if key is None:
                continue
            if key in own:
                first, second = own[key][0].start_mark.line + 1, key_node.start_mark.line + 1
                self.source.lines[(*at, key)] = second
                self.source.report.error(
                    (*at, key), f"the key {printable(key)!r} is given twice, on lines {first} and {second}"
                )
                continue
            own[key] = (key_node, value_node)
        return {**merged, **own}

    def key(self, node: Node, at: At) -> str | None:
        line = node.start_mark.line + 1
        if not isinstance(node, ScalarNode):
            self.source.lines.setdefault((*at, "?"), line)
            self.source.report.error((*at, "?"), "a key must be plain text")
            return None
        text = str(node.value)
        if node.tag != _TAG + "str":
            self.source.lines.setdefault((*at, text), line)
            self.source.report.error(
                (*at, text), f"the key {printable(text)} is not text", f'write "{printable(text)}" in quotes'
            )
            return None
        return text

    def scalar(self, node: ScalarNode, at: At) -> Any:
        text, tag = str(node.value), node.tag
        if "$" in text:
            text = self.expand(text, at)
            if at in self.source.expanded and node.style is None:
                # A plain `${PORT}` is a number if the variable holds one.
                resolver: Any = yaml.SafeLoader("")
                tag = resolver.resolve(ScalarNode, text, (True, False))
        if tag == _TAG + "str" or tag == _TAG + "timestamp":
            return text
        self.source.texts[at] = text
        plain = ScalarNode(tag, text, node.start_mark, node.end_mark)
        constructor = yaml.constructor.SafeConstructor()
        try:
            if tag == _TAG + "null":
                return None
            if tag == _TAG + "bool":
                return constructor.construct_yaml_bool(plain)
            if tag == _TAG + "int":
                return constructor.construct_yaml_int(plain)
            if tag == _TAG + "float":
                return constructor.construct_yaml_float(plain)
        except (ValueError, KeyError):
            self.source.report.error(at, f"{printable(text, 40)!r} is not a number or boolean that YAML knows")
            self.source.broken.add(at)
            return None
        if tag == _TAG + "value":  # a lone `=`
            return text
        self.source.report.error(at, f"the tag {_tag_name(node)} is not supported")
        self.source.broken.add(at)
        return None

    def expand(self, text: str, at: At) -> str:
        """Replace `${VAR}`, `${VAR:-default}` and `$$`. As in a shell, `:-` also counts for an empty variable."""

        def put(match: re.Match[str]) -> str:
            if match[0] == "$$":
                return "$"
            variable = _VARIABLE.fullmatch(match[1]) if match[1] is not None else None
            if variable is None:
                self.source.report.error(
                    at, f"{printable(match[0])!r} is not a variable", "write ${NAME}, or $$ for a plain $"
                )
                return ""
            self.source.expanded.add(at)
            name, default = variable[1], variable[2]
            value = self.environ.get(name)
            if default is not None:
                return value or default
            if value is None:
                self.source.unset[at] = name
                return ""
            return value

        return _DOLLAR.sub(put, text)


def _tag_name(node: Node) -> str:
    return printable(str(node.tag).replace(_TAG, "!!"))
