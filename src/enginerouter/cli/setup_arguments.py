"""The arguments of `init` and `import`. Light: `--help` needs nothing of what they do."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from enginerouter.errors import printable

KINDS = ("llama-swap", "gateway", "manifest")


class SetupArguments(argparse.Namespace):
    """What either of them reads."""

    config: Path
    assume_yes: bool
    force: bool
    as_json: bool
    # init
    detect_only: bool
    example: bool
    preset: list[str] | None
    list_presets: bool
    probe_host: str
    ports: list[int] | None
    host: str | None
    port: int
    stop_running: bool
    # import
    file: Path
    output: Path | None
    kind: str | None


def add_init(commands: Any) -> argparse.ArgumentParser:
    """Gives the parser, for the arguments that every command has."""
    init: argparse.ArgumentParser = commands.add_parser(
        "init",
        help="write a configuration: from what runs here, a preset, or an example",
        description=(
            "Looks for engines on this machine (Ollama, llama.cpp, vLLM, SGLang, LM Studio, TabbyAPI, KoboldCpp, "
            "LocalAI, MLX, MAX, ramalama), asks each what it is and which models it has, reads the command line it was "
            "started with, and writes a configuration that starts it the same way. Nothing is started or stopped "
            "(but see --stop-running). On a terminal it asks what it cannot know; under a pipe and with --yes never."
        ),
        epilog=(
            "Exit status: 0 written (or told), 1 nothing was written, 2 usage. The file is readable by its owner "
            "only: commands may hold keys."
        ),
    )
    what = init.add_mutually_exclusive_group()
    what.add_argument("--detect-only", action="store_true", help="say what runs here and write nothing")
    what.add_argument("--example", action="store_true", help="write the example, without looking at anything")
    what.add_argument(
        "--preset",
        action="append",
        metavar="NAME",
        help="write this preset, without looking at anything; may be given several times",
    )
    what.add_argument("--list-presets", action="store_true", help="list the presets and write nothing")
    _add_common(init)
    init.add_argument(
        "--stop-running",
        action="store_true",
        help="also end the engines found that are plain processes, so that the router can start them itself",
    )
    init.add_argument("--host", metavar="ADDRESS", help="address the router shall listen on (default 127.0.0.1)")
    init.add_argument("--port", type=_port, default=8077, help="port the router shall listen on (default 8077)")
    init.add_argument(
        "--probe-host",
        default="127.0.0.1",
        metavar="HOST",
        help="look on this host instead; what runs on another machine is written as remote",
    )
    init.add_argument(
        "--ports",
        type=_ports,
        metavar="N,N,…",
        help="look at these ports only (default: where engines listen by default, and wherever one listens here)",
    )
    return init


def add_import(commands: Any) -> argparse.ArgumentParser:
    """Gives the parser, for the arguments that every command has."""
    importer: argparse.ArgumentParser = commands.add_parser(
        "import",
        help="turn another program's file into a configuration",
        description=(
            "Reads a llama-swap configuration, a gateway's aliases.yaml or a manifest of profiles, and writes ours. "
            "Which one it is is seen. What has no equal is told, and stands as a comment in the result, which is "
            "checked as `enginerouter check` would. Variables of the environment stay variables."
        ),
        epilog="Exit status: 0 written, 1 refused, 2 usage.",
    )
    importer.add_argument("file", type=Path, metavar="FILE")
    importer.add_argument(
        "-o", "--output", type=Path, metavar="OUT", help="file to write; without it the result is printed"
    )
    importer.add_argument("--from", dest="kind", choices=KINDS, help="what FILE is, if that is not seen")
    _add_common(importer)
    return importer


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-y", "--yes", dest="assume_yes", action="store_true", help="ask nothing")
    parser.add_argument("--force", action="store_true", help="overwrite a file that is there")
    parser.add_argument(
        "--json", dest="as_json", action="store_true", help="tell the outcome as JSON on standard output"
    )


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 <= int(text[:6]) <= 65535:
        raise argparse.ArgumentTypeError(f"{printable(text, 20)!r} is no port: a number from 0 to 65535")
    return int(text)


def _ports(text: str) -> list[int]:
    return [_port(part.strip()) for part in text.split(",") if part.strip()]
