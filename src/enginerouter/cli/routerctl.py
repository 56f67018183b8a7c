"""The `routerctl` command: see and control a running router. It speaks the router's HTTP API and nothing else.

Exit codes: 0 done, 1 the router refused, 2 usage, 3 no router answers. What is asked for goes to standard output,
progress and errors to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from enginerouter import __version__
from enginerouter.cli import show, show_routing
from enginerouter.cli.client import READ_TIMEOUT_S, Client, Refused, Unreachable, place_of
from enginerouter.cli.completion import NAMES, SHELLS, completion
from enginerouter.service.unit import NAME

OK, REFUSED, UNREACHABLE = 0, 1, 3
# Somebody has pressed Tab.
COMPLETION_TIMEOUT_S = 1.0
PLAIN_NAME = re.compile(r"[\w.:/@+-]+", re.ASCII)
EPILOG = """\
Where the router is: --url, $ENGINEROUTER_URL, else the configuration (--config, $ENGINEROUTER_CONFIG,
./config.yaml, ~/.config/enginerouter/config.yaml), else http://127.0.0.1:8077. Its key: $ENGINEROUTER_API_KEY, the
file that $ENGINEROUTER_API_KEY_FILE names, else the first admin key of that configuration, if it is the router of
that configuration that is asked.

--url, --config and --json may stand before the command or after it.

Exit codes: 0 done, 1 the router refused, 2 usage, 3 no router answers."""


class Arguments(argparse.Namespace):
    """The parsed command line."""

    command: str
    url: str | None
    config: Path | None
    json: bool
    name: str | None
    rest: list[str]
    expires_s: float | None
    queues: bool
    follow: bool
    lines: int
    no_wait: bool
    shell: str


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="routerctl",
        description="See and control a running enginerouter.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"routerctl {__version__}")
    _add_general(top, is_top=True)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, text: str, *names: str, optional: str = "") -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=text, description=text)
        _add_general(found, is_top=False)
        for word in names:
            found.add_argument("name", metavar=word)
        if optional:
            found.add_argument("name", nargs="?", metavar=optional)
        return found

    add("ping", "whether it lives: exit code 0; for health checks, needs no key")
    add("status", "what is in memory, who waits, the last swaps")
    add("models", "the models that can be named, and where they are")
    use = add("use", "load a model or an engine now, first in line", "NAME")
    use.add_argument("--no-wait", action="store_true", help="return at once")
    add("unload", "free a model or an engine, or all; one in use goes when its last request ends", optional="NAME")
    add("discover", "ask the engines again which models they have")
    add("aliases", "the aliases and their chains")
    add("health", "which targets answer, and which circuits are open")
    add("reset", "close circuits, so that what failed is tried again at once", optional="ENGINE[/MODEL]")
    add("queue", "who waits for what")
    add("watch", "phases, swaps and requests as they happen, until Ctrl-C")
    add("explain", "what a request for a model would evict, wait for and be served by; changes nothing", "MODEL")
    hold = add("hold", "free all memory and keep it free for another program", "OWNER")
    hold.add_argument("--for", dest="expires_s", type=float, metavar="SECONDS", help="release it after so long")
    hold.add_argument("--queue", dest="queues", action="store_true", help="let requests wait instead of refusing them")
    add("release", "end the hold", optional="OWNER")
    add("reload", "read the configuration again and apply what changed")
    logs = add("logs", "the end of the router's log, or of an engine's; a model means its engine", optional="ENGINE")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as it grows, until Ctrl-C")
    logs.add_argument("-n", "--lines", type=int, default=40, metavar="N", help="how many lines (default 40)")
    add("restart", "restart the systemd user service")
    init = commands.add_parser("init", help="write a configuration: the same as `enginerouter init`", add_help=False)
    init.add_argument("rest", nargs=argparse.REMAINDER)
    shell = commands.add_parser("completion", help="print the completions of a shell, or the names that they offer")
    shell.add_argument("shell", choices=(*SHELLS, NAMES))
    return top


def _add_general(to: argparse.ArgumentParser, *, is_top: bool) -> None:
    """The options of every command. After one they are not listed, and have no default: it would undo what was said."""

    def told(text: str) -> str:
        return text if is_top else argparse.SUPPRESS

    default = None if is_top else argparse.SUPPRESS
    to.add_argument("--url", metavar="URL", default=default, help=told("the router, as http://spark.local:8077"))
    where = told("a configuration that says where it is")
    to.add_argument("--config", "-c", type=Path, metavar="PATH", default=default, help=where)
    is_off = False if is_top else argparse.SUPPRESS
    to.add_argument("--json", action="store_true", default=is_off, help=told("print the router's own JSON answers"))


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv, Arguments())
    try:
        return _run(arguments)
    except Refused as error:
        print(f"routerctl: {error}", file=sys.stderr)
        return REFUSED
    except Unreachable as error:
        print(f"routerctl: {error}\nIs it running? `routerctl restart`, or `enginerouter --config …`", file=sys.stderr)
        return UNREACHABLE
    except BrokenPipeError:
        sys.stderr.close()  # `routerctl logs | head` ends so
        return OK
    except KeyboardInterrupt:
        return OK if arguments.command in ("watch", "logs") else 130


def _run(arguments: Arguments) -> int:
    command = arguments.command
    if command == "completion":
        if arguments.shell != NAMES:
            sys.stdout.write(completion(arguments.shell, parser()))
            return OK
        with contextlib.suppress(Refused):
            return _names(Client(place_of(arguments.url, arguments.config)))
        return OK
    if command == "init":
        from enginerouter.cli.main import main as enginerouter

        return enginerouter(["init", *arguments.rest])
    if command == "restart":
        return _restart()
    client = Client(place_of(arguments.url, arguments.config))
    if command == "watch":
        return _watch(client, as_json=arguments.json)
    if command == "logs":
        return _logs(client, arguments)
    if command == "use":
        return _use(client, arguments)
    found = ASKS[command](client, arguments)
    lines = [json.dumps(found, ensure_ascii=False, indent=2)] if arguments.json else SHOWN[command](found)
    print("\n".join(lines))
    return OK


# --- one question, one answer

Ask = Callable[[Client, Arguments], dict[str, Any]]


def _models(client: Client, arguments: Arguments) -> dict[str, Any]:
    return {**client.get("/v1/models"), "phases": show.phases_by_name(client.status())}


def _named(client: Client, name: str | None) -> dict[str, str]:
    """A name as the control routes take it: an engine if there is one of it, else a model; nothing for all."""
    if name is None:
        return {}
    engines = {slot.get("engine") for slot in client.status().get("slots", ())}
    return {"engine": name} if name in engines else {"model": name}


def _reset(client: Client, arguments: Arguments) -> dict[str, Any]:
    engine, _, model = (arguments.name or "").partition("/")
    named = _named(client, arguments.name)
    if "model" in named and model and "engine" in _named(client, engine):
        named = {"engine": engine, "model": model}
    with _nearest_engine(client, arguments.name):
        return client.post("/admin/reset", named)


def _unload(client: Client, arguments: Arguments) -> dict[str, Any]:
    with _nearest_engine(client, arguments.name):
        return client.post("/admin/unload", _named(client, arguments.name))


@contextlib.contextmanager
def _nearest_engine(client: Client, name: str | None) -> Iterator[None]:
    """Of an unknown name the router suggests the nearest model; it may have been meant for an engine."""
    try:
        yield
    except Refused as error:
        if error.status != 404 or name is None or "did you mean" in str(error):
            raise
        engines = {str(slot.get("engine")) for slot in client.status().get("slots", ())}
        close = get_close_matches(name, sorted(engines), n=1, cutoff=0.6)
        hint = f"did you mean the engine {close[0]!r}?" if close else f"the engines: {', '.join(sorted(engines))}"
        raise Refused(f"{error}; {hint}", error.status) from None


def _hold(client: Client, arguments: Arguments) -> dict[str, Any]:
    body: dict[str, Any] = {"owner": arguments.name, "mode": "queue" if arguments.queues else "refuse"}
    if arguments.expires_s is not None:
        body["expires_s"] = arguments.expires_s
    return client.post("/admin/hold", body)


ASKS: Mapping[str, Ask] = {
    "ping": lambda client, _: client.ping(),
    "status": lambda client, _: client.status(),
    "queue": lambda client, _: client.status(),
    "models": _models,
    "aliases": lambda client, _: client.get("/v1/aliases"),
    "health": lambda client, _: client.get("/v1/health"),
    "unload": _unload,
    "discover": lambda client, _: client.post("/admin/discover", {}),
    "reset": _reset,
    "explain": lambda client, a: client.post("/admin/explain", {"model": a.name}),
    "hold": _hold,
    "release": lambda client, a: client.post("/admin/release", {} if a.name is None else {"owner": a.name}),
    "reload": lambda client, _: client.post("/admin/reload", {}),
}
SHOWN: Mapping[str, Callable[[Mapping[str, Any]], list[str]]] = {
    **dict.fromkeys(ASKS, show.plain),
    "status": show.status,
    "queue": show.queue,
    "hold": show.held,
    "release": show.released,
    "reload": show.reload,
    "aliases": show_routing.aliases,
    "health": show_routing.health,
    "explain": show_routing.explain,
    "reset": show_routing.reset,
    "unload": show_routing.unload,
    "discover": show_routing.discover,
    "models": lambda found: show.models(found, found["phases"]),
}


# --- what takes time


def _use(client: Client, arguments: Arguments) -> int:
    """Swap, and say how far it is while it runs."""
    named = _named(client, arguments.name)
    with _nearest_engine(client, arguments.name):
        if arguments.no_wait:
            found = client.post("/admin/swap?wait=0", named)
        else:
            with _progress(client):
                found = client.post("/admin/swap", named)
    if arguments.json:
        print(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        took = f" in {show.seconds(found['seconds'])}" if "seconds" in found else ""
        print(f"{found.get('slot')} is {found.get('phase')}{took}")
    return OK


@contextlib.contextmanager
def _progress(client: Client) -> Iterator[None]:
    """One line on a terminal that follows the swaps, in a thread: the question itself waits for its answer."""
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()

    def follow() -> None:
        while not done.wait(0.5):
            with contextlib.suppress(Refused, Unreachable):
                swaps = client.status().get("swaps") or ()
                text = "; ".join(map(show.swap, swaps)) or "waiting"
                sys.stderr.write(f"\r\x1b[K{text}")
                sys.stderr.flush()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        sys.stderr.write("\r\x1b[K")


def _watch(client: Client, *, as_json: bool) -> int:
    """The events as lines, one each. A snapshot of the state comes first."""
    name, is_first = "", True
    # It speaks once a second.
    for line in client.lines("/events", READ_TIMEOUT_S):
        key, _, value = line.partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            data = json.loads(value)
            if as_json:
                print(json.dumps({"event": name, **data}, ensure_ascii=False), flush=True)
            elif name == "status" and is_first:
                print("\n".join([*show.status(data), ""]), flush=True)
                is_first = False
            elif (text := show.event(name, data)) is not None:
                print(f"{show.clock(data.get('at'))} {text}", flush=True)
    raise Unreachable(f"the router at {client.place.url} has ended")


def _logs(client: Client, arguments: Arguments) -> int:
    query = {"lines": str(arguments.lines)}
    if arguments.name:
        query["engine"] = _engine_of(client, arguments.name)
    if arguments.follow:
        query["follow"] = "1"
    for line in client.lines("/logs", None if arguments.follow else READ_TIMEOUT_S, **query):
        print(line, flush=arguments.follow)
    return OK


def _engine_of(client: Client, name: str) -> str:
    """The engine of that name, else that of the model of that name; of others the router says what there is."""
    engines = {slot.get("engine") for slot in client.status().get("slots") or ()}
    owners = {model.get("id"): str(model.get("owned_by")) for model in client.get("/v1/models").get("data") or ()}
    owner = owners.get(name, name)
    return owner if name not in engines and owner in engines else name


def _names(client: Client) -> int:
    """What completions offer: names that no shell could take for more than text. Quick, and silent without a router."""
    with contextlib.suppress(Refused, Unreachable):
        engines = [slot.get("engine") for slot in client.status(COMPLETION_TIMEOUT_S).get("slots") or ()]
        models = [model.get("id") for model in client.get("/v1/models", COMPLETION_TIMEOUT_S).get("data") or ()]
        print("\n".join(sorted(filter(PLAIN_NAME.fullmatch, {*map(str, engines), *map(str, models)}))))
    return OK


def _restart() -> int:
    """Becomes systemctl, whose exit code is then ours."""
    try:
        os.execlp("systemctl", "systemctl", "--user", "restart", NAME)
    except FileNotFoundError:
        raise Refused("there is no systemctl here: restart the router the way it was started") from None


if __name__ == "__main__":
    sys.exit(main())
