"""`enginerouter init`: a configuration from what runs here, from presets, or the example.

Told on standard output, asked on standard error; asked only on a terminal, and only what cannot be known.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from enginerouter.cli.setup_arguments import SetupArguments
from enginerouter.cli.writing import NotWritten, agrees, ask, can_ask, may_write, write
from enginerouter.config.load import load_text
from enginerouter.engines import proctree
from enginerouter.errors import Problem
from enginerouter.setup import presets
from enginerouter.setup.propose import Answers, Proposal, label, lacks_command, propose, why_not
from enginerouter.setup.recognise import PORTS, TITLES
from enginerouter.setup.scan import Found, scan

# A server that is told to stop may end what it is saying first.
STOP_TIMEOUT_S = 45.0


def run_init(arguments: SetupArguments) -> int:
    """Raises ConfigError for a preset that there is not, and for a result that would not load."""
    if arguments.list_presets:
        return _list_presets(arguments)
    try:
        if arguments.preset:
            return _write_given(presets.combined(arguments.preset), arguments)
        if arguments.example:
            return _write_given(presets.example(), arguments)
        return asyncio.run(_init(arguments))
    except NotWritten as refused:
        print(refused, file=sys.stderr)
        return 1


def _list_presets(arguments: SetupArguments) -> int:
    found = {name: presets.summary_of(name) for name in presets.names()}
    if arguments.as_json:
        print(json.dumps(found, ensure_ascii=False, indent=1))
    else:
        for name, summary in found.items():
            print(f"{name:<14}{summary}")
    return 0


def _write_given(text: str, arguments: SetupArguments) -> int:
    may_write(arguments.config, force=arguments.force, can_be_asked=can_ask(assume_yes=arguments.assume_yes))
    settings = {key: value for key, value in (("host", arguments.host), ("port", arguments.port)) if value is not None}
    if arguments.preset:
        text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items()) + "\n" + text
    warnings, _ = _written(text, arguments)
    if arguments.as_json:
        print(json.dumps({"written": str(arguments.config), "warnings": [str(w) for w in warnings]}))
        return 0
    print(f"wrote {arguments.config}")
    changes = [f"  line {n}: {line.strip()}" for n, line in enumerate(text.splitlines(), 1) if "CHANGE" in line]
    print("\n".join(["to be changed:", *changes] if changes else ["now say in it which engines and models you have"]))
    _say_next(arguments.config)
    return 0


def _written(text: str, arguments: SetupArguments) -> tuple[Sequence[Problem], Sequence[str]]:
    """Warnings and engines. What the router would refuse is not written: raises ConfigError."""
    path = arguments.config
    loaded = load_text(text, base_dir=path.absolute().parent, file=str(path))
    write(path, text)
    return loaded.warnings, tuple(loaded.config.engines)


async def _init(arguments: SetupArguments) -> int:
    asks = can_ask(assume_yes=arguments.assume_yes)
    if not arguments.detect_only:
        # Before anybody is made to wait or asked.
        may_write(arguments.config, force=arguments.force, can_be_asked=asks)
    found = await _scan(arguments, {})
    if arguments.detect_only:
        return _tell_found(found, arguments)
    if asks:
        found = await _with_asked_keys(found, arguments)
    answers = Answers(_asked_commands(found) if asks else {}, _asked_host(arguments, asks=asks), arguments.port)
    proposal = propose(found, answers)
    if not proposal.document.engines:
        _tell_nothing(found, arguments)
        return 1
    warnings, engines = _written(proposal.document.text(), arguments)
    stopped = await _stopped(proposal, arguments, asks=asks)
    if arguments.as_json:
        told = [_as_json(one) for one in found]
        outcome = {"written": str(arguments.config), "engines": engines, "found": told, "stopped": stopped}
        print(json.dumps({**outcome, "warnings": [str(w) for w in warnings]}, ensure_ascii=False, indent=1))
        return 0
    print("\n".join(proposal.told))
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"wrote {arguments.config}")
    for one in proposal.running:
        if one.running is not None and one.running.pid not in stopped:
            print(
                f"{label(one)} still runs (process {one.running.pid}). The router starts it the same way, but never "
                f"stops what it did not start, and never shares a port: end it once with `kill {one.running.pid}`"
            )
    _say_next(arguments.config)
    return 0


async def _scan(arguments: SetupArguments, keys: Mapping[int, str]) -> list[Found]:
    ports, is_given = _ports(arguments), arguments.ports is not None
    return await scan(arguments.probe_host, ports, looks_for_processes=not is_given, keys=keys)


def _ports(arguments: SetupArguments) -> tuple[int, ...]:
    return tuple(arguments.ports if arguments.ports is not None else (p for p in PORTS if p != arguments.port))


def _say_next(path: Path) -> None:
    quoted = shlex.quote(str(path))
    print(f"check it: enginerouter check --config {quoted}\nserve it: enginerouter --config {quoted}")


# --- what was found


def _tell_found(found: Sequence[Found], arguments: SetupArguments) -> int:
    if arguments.as_json:
        print(json.dumps({"found": [_as_json(one) for one in found]}, ensure_ascii=False, indent=1))
        return 0
    if not found:
        print(f"nothing that answers was found on {arguments.probe_host}")
    for one in found:
        print(f"{label(one)}" + (f" – {why}" if (why := why_not(one)) else ""))
        if one.needs_key:
            print("  models:  it asks for a key")
        elif one.models:
            print(f"  models:  {', '.join(_shown_model(m.id, m.context_length) for m in one.models)}")
        if (running := one.running) is not None:
            print(f"  process: {running.pid or 'unknown'}" + (f", unit {running.unit}" if running.unit else ""))
            print(f"  command: {running.shown() or running.doubt}")
    return 0


def _shown_model(name: str, context: int | None) -> str:
    return f"{name} ({context} tokens)" if context else name


def _as_json(one: Found) -> dict[str, Any]:
    running = one.running
    return {
        "kind": one.kind,
        "base_url": one.base_url,
        "models": [{"id": m.id, "context_length": m.context_length} for m in one.models],
        "needs_key": one.needs_key,
        "left_out": why_not(one) or None,
        "process": None
        if running is None
        else {
            "pid": running.pid or None,
            "command": running.shown() or None,
            "cwd": str(running.cwd) if running.cwd else None,
            "unit": running.unit or None,
            "container": running.container or None,
            "doubt": running.doubt or None,
        },
    }


def _tell_nothing(found: Sequence[Found], arguments: SetupArguments) -> None:
    if arguments.as_json:
        print(json.dumps({"written": None, "found": [_as_json(one) for one in found]}, ensure_ascii=False, indent=1))
    for one in found:
        print(f"{label(one)}: left out – {why_not(one)}", file=sys.stderr)
    ports = ", ".join(map(str, _ports(arguments)))
    print(
        f"no engine was found on {arguments.probe_host} (ports {ports}), so nothing was written; "
        "start one and try again, or begin with a preset (--list-presets) or --example",
        file=sys.stderr,
    )


# --- what only a person knows


async def _with_asked_keys(found: list[Found], arguments: SetupArguments) -> list[Found]:
    keys = {}
    for one in found:
        if one.needs_key and not why_not(one):
            key = getpass.getpass(f"{label(one)} asks for a key (empty: none): ", stream=sys.stderr)
            if key.strip():
                keys[one.port] = key.strip()
    return await _scan(arguments, keys) if keys else found


def _asked_commands(found: Sequence[Found]) -> dict[int, str]:
    commands = {}
    for one in found:
        if not why_not(one) and lacks_command(one) and one.running is not None and not one.running.container:
            print(f"{label(one)}: how it was started is not known: {one.running.doubt}.", file=sys.stderr)
            if command := ask("What command starts it? (empty: leave it switched off)", ""):
                commands[one.port] = command
    return commands


def _asked_host(arguments: SetupArguments, *, asks: bool) -> str | None:
    if arguments.host is not None or not asks:
        return arguments.host
    host = ask("Which address shall the router listen on? (0.0.0.0: all; then set api_keys)", "127.0.0.1")
    return host if host != "127.0.0.1" else None


# --- what runs already


async def _stopped(proposal: Proposal, arguments: SetupArguments, *, asks: bool) -> list[int]:
    """End the processes that the router would start itself, if that is wanted. Gives the pids of those that went."""
    stopped = []
    for one in proposal.running:
        running = one.running
        if running is None:
            continue
        what = f"{TITLES[one.kind or '']} (process {running.pid})"
        if not arguments.stop_running and not (
            asks and agrees(f"End {what} now, so that the router starts it when it is needed?")
        ):
            continue
        if await _end(running.pid):
            stopped.append(running.pid)
            print(f"ended {what}", file=sys.stderr)
        else:
            print(f"{what} did not end within {STOP_TIMEOUT_S:g} s; end it yourself", file=sys.stderr)
    return stopped


async def _end(pid: int) -> bool:
    """Ask one process to end, and see that it has. It is never killed hard: it is not ours."""
    info = await asyncio.to_thread(proctree.read_process, pid, with_marker=False)
    if info is None:
        return True
    await asyncio.to_thread(proctree.send, info.key, proctree.TERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while await asyncio.to_thread(proctree.is_alive, info.key):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True
