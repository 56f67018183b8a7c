"""The reference of all commands, docs/reference/commands.md, made from the parsers; of all metrics, from a registry.

`python -m enginerouter.cli.reference commands > docs/reference/commands.md` writes one; a test keeps them equal.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from enginerouter.cli import main as enginerouter
from enginerouter.cli import routerctl
from enginerouter.config.model import Cache, Config
from enginerouter.metrics import Family
from enginerouter.web.app import Router

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


async def _declared() -> list[Family]:
    with tempfile.TemporaryDirectory() as folder:
        router = Router(Config(base_dir=Path(folder), port=0, cache=Cache(embeddings=True), memory_source="none"))
        await router.start()
        try:
            return list(router.registry)
        finally:
            await router.stop()


TEXTS = {"commands": commands_text, "metrics": metrics_text}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m enginerouter.cli.reference", description="Print a reference.")
    parser.add_argument("which", choices=TEXTS)
    sys.stdout.write(TEXTS[parser.parse_args().which]())
    return 0


if __name__ == "__main__":
    sys.exit(main())
