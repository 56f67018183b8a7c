"""The references of commands, metrics and HTTP routes, made from the parsers, a registry and a router's table.

`python -m enginerouter.cli.reference commands > docs/reference/commands.md` writes one; a test keeps them equal.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from enginerouter.cli import main as enginerouter
from enginerouter.cli import routerctl
from enginerouter.cli.reference_shapes import answers_text
from enginerouter.config.model import Cache, Config
from enginerouter.errors import RouterError
from enginerouter.metrics import Family
from enginerouter.web.app import Router
from enginerouter.web.routes import Route, Routes

T = TypeVar("T")
_COMMANDS = """# Commands

<!-- Made from the parsers: python -m enginerouter.cli.reference commands > docs/reference/commands.md -->

`enginerouter` serves, and prepares what it serves; `routerctl` sees and controls a router that runs. Both end with 0
when it is done and 2 for a wrong command line. `enginerouter` ends with 1 when it refused or failed, 3 when the port
cannot be had; `routerctl` with 1 when the router refused, 3 when none answers.
"""
_METRICS = """# Metrics

<!-- Made from the router: python -m enginerouter.cli.reference metrics > docs/reference/metrics.md -->

`GET /metrics` in Prometheus's text format 0.0.4. Label values are configured names; what a client made up is `other`.
A histogram has `_bucket`, `_sum` and `_count`.

| metric | kind | labels | what |
| --- | --- | --- | --- |
"""
_HTTP = """# HTTP

<!-- Made from the router's table: python -m enginerouter.cli.reference http > docs/reference/http.md -->

Paths are matched as they are sent, to the letter: another spelling is refused. Where there is a GET there is a HEAD.

Who may: *open* – everybody; *key* – any key, within what it may name; *admin* – admin keys. Without `api_keys`
everybody whose `Host` and `Origin` pass is admin ([keys](../how-to/keys.md)).
"""
_GROUPS = (
    ("/v1", "OpenAI and Anthropic"),
    ("/api", "Ollama and LM Studio"),
    ("/admin", "Control"),
    ("/", "Everything else"),
)
_HTTP_HEADERS = """
## Headers of answers

| header | what |
| --- | --- |
| `X-Request-Id` | the id of this request in the log; a client's own is kept; at `/v1/messages` also as `Request-Id` |
| `X-EngineRouter-Resolved` | `engine/model` that answered |
| `X-EngineRouter-Attempts` | how many targets of a chain were tried |
| `X-EngineRouter-Queue-Ms`, `X-EngineRouter-Swap-Ms` | how long it waited, and how long of that for a swap |
| `X-EngineRouter-Cache` | `hit` or `miss`, where the cache was asked |
| `X-EngineRouter-Estimated` | `1` where a count of tokens is an estimate |
| `Retry-After` | with 429 and 503: seconds, 1 to 60 |
| `x-should-retry: false` | a retry cannot cure it; SDKs obey |

A streaming client that waits gets its 200 and comments after `commit_after_s`; what goes wrong afterwards is said in
the stream. Until then errors have their real status, in the dialect of the route:

## Errors

| status | `code` | what |
| --- | --- | --- |
"""


def commands_text() -> str:
    """docs/reference/commands.md."""
    parts = [_COMMANDS]
    for parser in (enginerouter.parser(), routerctl.parser()):
        parts.append(f"\n## {parser.prog}\n\n{parser.description}\n")
        parts += _options(parser)
        if parser.epilog:
            parts.append(f"\n{parser.epilog}\n")
        for name, command, text in subcommands(parser):
            parts.append(f"\n### `{_usage(parser.prog, name, command)}`\n\n{_sentence(command.description or text)}\n")
            parts += _options(command)
    return "".join(parts)


def subcommands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """Name, parser and help of every command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            yield from ((name, command, texts.get(name, "")) for name, command in action.choices.items())


def _usage(program: str, name: str, parser: argparse.ArgumentParser) -> str:
    words = [program, name]
    for action in _shown(parser):
        if not action.option_strings:
            word = str(action.metavar or action.dest).upper()
            words.append(f"[{word}]" if action.nargs in ("?", "*", argparse.REMAINDER) else word)
    return " ".join(words)


def _shown(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        is_general = isinstance(action, (argparse._HelpAction, argparse._SubParsersAction))
        if not is_general and action.help is not argparse.SUPPRESS:
            yield action


def _options(parser: argparse.ArgumentParser) -> list[str]:
    rows = []
    for action in _shown(parser):
        if action.option_strings:
            value = f" {action.metavar or action.dest.upper()}" if action.nargs != 0 else ""
            names = ", ".join(f"`{option}{value}`" for option in action.option_strings)
        elif action.help or action.choices:
            names = f"`{str(action.metavar or action.dest).upper()}`"
        else:
            continue
        text = (action.help or "").replace("%%", "%").replace("|", "\\|")
        if action.choices:
            text = "; ".join(filter(None, [text, "one of " + ", ".join(map(str, action.choices))]))
        rows.append(f"| {names} | {text} |\n")
    return ["\n| option | what |\n| --- | --- |\n", *rows] if rows else []


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def metrics_text() -> str:
    """docs/reference/metrics.md: what a router declares once it runs, with everything on."""
    families = sorted(asyncio.run(_declared()), key=lambda family: family.name)
    return _METRICS + "".join(
        f"| `{f.name}` | {f.type_name} | {', '.join(f'`{label}`' for label in f.label_names)} | {f.help} |\n"
        for f in families
    )


def http_text() -> str:
    """docs/reference/http.md: the table of a router, each handler explained by the beginning of its docstring."""
    rest = list(routes().rows)
    parts = [_HTTP]
    for prefix, title in _GROUPS:
        group = [route for route in rest if route.path == prefix or route.path.startswith(f"{prefix.rstrip('/')}/")]
        rest = [route for route in rest if route not in group]
        if group:
            parts += [f"\n## {title}\n\n| route | who | what |\n| --- | --- | --- |\n", *_route_rows(group)]
    return "".join([*parts, _HTTP_HEADERS, *_error_rows(), answers_text()])


def routes() -> Routes:
    """The table of a router with default settings."""
    return asyncio.run(_of_a_router(lambda router: router.routes))


def _route_rows(group: Iterable[Route]) -> Iterator[str]:
    """One row for the routes of one handler."""
    by_handler: dict[tuple[str, str], list[Route]] = {}
    for route in group:
        by_handler.setdefault((route.handler.__qualname__, route.access), []).append(route)
    for (_, access), same in by_handler.items():
        names = "<br>".join(f"`{route.method} {route.path}`" for route in same)
        yield f"| {names} | {access} | {_cell(first_paragraph(same[0].handler.__doc__))} |\n"


def _error_rows() -> Iterator[str]:
    """Every kind of error that has a code of its own."""
    seen: set[tuple[int, str]] = set()
    for kind in sorted(_kinds(RouterError), key=lambda kind: (kind.status, kind.code)):
        if "code" in vars(kind) and (kind.status, kind.code) not in seen:
            seen.add((kind.status, kind.code))
            yield f"| {kind.status} | `{kind.code}` | {_cell(first_paragraph(kind.__doc__))} |\n"


def _kinds(kind: type[RouterError]) -> Iterator[type[RouterError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)


def first_paragraph(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


async def _declared() -> list[Family]:
    return await _of_a_router(lambda router: list(router.registry))


async def _of_a_router(read: Callable[[Router], T]) -> T:
    with tempfile.TemporaryDirectory() as folder:
        router = Router(Config(base_dir=Path(folder), port=0, cache=Cache(embeddings=True), memory_source="none"))
        await router.start()
        try:
            return read(router)
        finally:
            await router.stop()


TEXTS = {"commands": commands_text, "metrics": metrics_text, "http": http_text}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m enginerouter.cli.reference", description="Print a reference.")
    parser.add_argument("which", choices=TEXTS)
    sys.stdout.write(TEXTS[parser.parse_args().which]())
    return 0


if __name__ == "__main__":
    sys.exit(main())
