"""The `enginerouter` command: arguments, exit codes, and the one place where an error becomes a message.

Exit codes: 0 done, 1 refused or failed, 2 usage, 3 the port cannot be had.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from enginerouter import __version__
from enginerouter.cli.places import HERE, config_to_read, config_to_write
from enginerouter.cli.setup_arguments import SetupArguments, add_import, add_init
from enginerouter.errors import AlreadyRunning, CannotListen, ConfigError
from enginerouter.service.hangup import noted_hangups
from enginerouter.service.unit import add_version

EXIT_REFUSED = 1
EXIT_PORT = 3
# Commands that make a configuration and serve nothing.
WRITES = ("init", "import")
WRITTEN = f"$ENGINEROUTER_CONFIG or ./{HERE}"
READ = f"$ENGINEROUTER_CONFIG, else ./{HERE}, else ~/.config/enginerouter/{HERE}"


class Arguments(SetupArguments):
    """The parsed command line. `config` is None where none was named."""

    command: str
    check_config: bool
    print_schema: bool
    port: int
    memory_mib: int
    load_s: float
    once: bool
    socket: bool
    systemd_version: int


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="enginerouter",
        description="One port for one box whose memory holds one heavy LLM engine at a time.",
        epilog="Without a command it serves. Try it without a configuration: enginerouter demo",
    )
    top.add_argument("--version", action="version", version=f"enginerouter {__version__}")
    _add_config(top, default=None)
    top.add_argument("--check-config", action="store_true", help="the same as the command check")
    top.add_argument("--print-schema", action="store_true", help="the same as the command schema")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    # In a sub-parser a default would overwrite what stands before the command.
    _add_config(commands.add_parser("serve", help="serve (the default)"), default=argparse.SUPPRESS)
    _add_config(commands.add_parser("check", help="say what is wrong with a configuration"), default=argparse.SUPPRESS)
    commands.add_parser("schema", help="print the JSON Schema of the configuration")
    _add_config(add_init(commands), default=argparse.SUPPRESS, where=WRITTEN)
    add_import(commands)
    unit = commands.add_parser("unit", help="print the systemd user unit that serves a configuration")
    _add_config(unit, default=argparse.SUPPRESS)
    unit.add_argument("--socket", action="store_true", help="print its socket unit instead (socket activation)")
    add_version(unit)
    demo = commands.add_parser("demo", help="two built-in engines and a guided swap; no GPU, no download")
    demo.add_argument("--port", type=int, default=8077, help="port to serve on (default 8077; any free one if taken)")
    demo.add_argument("--memory-mib", type=int, default=512, help="memory that each engine holds (default 512)")
    demo.add_argument("--load-s", type=float, default=3.0, help="seconds that each engine takes to load (default 3)")
    demo.add_argument("--once", action="store_true", help="end after the guided swap")
    return top


def _add_config(to: argparse.ArgumentParser, *, default: object, where: str = READ) -> None:
    told = f"the configuration file (default {where})"
    to.add_argument("--config", "-c", type=Path, default=default, metavar="PATH", help=told)


def _found() -> Path:
    """Which configuration is meant where none was named. One that is not in this folder is told."""
    found = config_to_read(os.environ)
    if found != HERE and not os.environ.get("ENGINEROUTER_CONFIG"):
        print(f"configuration: {found}", file=sys.stderr)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv, Arguments())
    try:
        return run(arguments)
    except ConfigError as error:
        for problem in error.problems:
            print(f"config error: {problem}", file=sys.stderr)
        if arguments.command not in WRITES:
            print("nothing was started; `enginerouter check` reads the file again", file=sys.stderr)
        return EXIT_REFUSED
    except AlreadyRunning as error:
        print(error, file=sys.stderr)
        return EXIT_REFUSED
    except CannotListen as error:
        print(error, file=sys.stderr)
        return EXIT_PORT
    except KeyboardInterrupt:
        return 130


def run(arguments: Arguments) -> int:
    """Run the command. What a command needs is imported here: `--help` should not wait for a web server."""
    command = "check" if arguments.check_config else "schema" if arguments.print_schema else arguments.command
    if command == "schema":
        from enginerouter.cli.check import schema

        return schema()
    if command == "init":
        from enginerouter.cli.init import run_init

        arguments.config = arguments.config or config_to_write(os.environ)
        return run_init(arguments)
    if command == "import":
        from enginerouter.cli.importing import run_import

        return run_import(arguments)
    if command == "demo":
        from enginerouter.cli.demo import demo

        return demo(
            port=arguments.port,
            memory_mib=arguments.memory_mib,
            load_s=arguments.load_s,
            ends_after_tour=arguments.once,
        )
    path = arguments.config or _found()
    if command == "check":
        from enginerouter.cli.check import check

        return check(path)
    if command == "unit":
        from enginerouter.cli.unit import unit

        return unit(path, wants_socket=arguments.socket, systemd_version=arguments.systemd_version)
    return _serve(path)


def _serve(path: Path) -> int:
    with noted_hangups() as early:
        from enginerouter.web.machine import load_here
        from enginerouter.web.serve import serve

        return serve(load_here(path), early)
