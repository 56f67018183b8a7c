"""Looking for engines: which ports answer, what is behind them, and how that process could be started again.

All ports at once, each question bounded. Only GETs on paths that load and wake nothing; nothing is started or stopped.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import yaml

from enginerouter.engines.http_control import ControlClient, ControlFailed, Said
from enginerouter.engines.ports import is_local, resolve
from enginerouter.engines.systemctl import Systemctl, UnitState
from enginerouter.setup.recognise import PATHS, PORTS, FoundModel, command_kind, kind_of, models_of, needs_key
from enginerouter.setup.running import Running, engine_ports, front_of, read, running_at

_ASK_TIMEOUT_S = 1.5
_CONNECT_TIMEOUT_S = 0.4


@dataclass(frozen=True, slots=True)
class Found:
    """One thing that answers. `kind` None: nobody knows what it is. `running` None: it is not on this machine."""

    host: str
    port: int
    kind: str | None
    models: tuple[FoundModel, ...] = ()
    needs_key: bool = False
    api_key: str = ""
    admin_key: str = ""
    running: Running | None = None

    @property
    def base_url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


async def scan(
    host: str = "127.0.0.1",
    ports: Collection[int] = tuple(PORTS),
    *,
    looks_for_processes: bool = True,
    keys: Mapping[int, str] = MappingProxyType({}),
) -> list[Found]:
    """What answers at these ports, and – on this machine – wherever a process listens whose command is an engine's.

    By port, in the order given. `keys`: what to say to those that ask for a key.
    """
    addresses = await asyncio.to_thread(resolve, host, 0)
    is_here = any([await asyncio.to_thread(is_local, address) for address in addresses])
    more = await asyncio.to_thread(engine_ports) if is_here and looks_for_processes else set()
    wanted = dict.fromkeys((*ports, *sorted(more)))
    looks = [_look(host, port, is_here=is_here, key=keys.get(port, "")) for port in wanted]
    found = await asyncio.gather(*looks)
    # A port that is nobody's default and speaks no known words is some other door of an engine.
    return [one for one in found if one is not None and (one.kind is not None or one.port in ports)]


async def _look(host: str, port: int, *, is_here: bool, key: str) -> Found | None:
    if not await _connects(host, port):
        return None
    running = await asyncio.to_thread(running_at, host, port) if is_here else None
    told = command_kind(running.argv) if running is not None else None
    found = Found(host, port, None, running=running)
    key = key or (running.api_key if running is not None else "")
    answers = await ask(found.base_url, key)
    kind = kind_of(answers, told)
    if kind is None:
        return found
    if kind == "tabbyapi" and running is not None:
        own, admin = await asyncio.to_thread(tabby_keys, running.cwd)
        if needs_key(answers) and own and not key:
            key, answers = own, await ask(found.base_url, own)
        found = dataclasses.replace(found, admin_key=admin)
    if running is not None and running.unit:
        running = await _with_proven_unit(running, kind)
    return dataclasses.replace(
        found,
        kind=kind,
        models=models_of(kind, answers, running.argv if running is not None else ()),
        needs_key=needs_key(answers),
        api_key=key,
        running=running,
    )


async def ask(base_url: str, key: str = "") -> dict[str, Said]:
    """What it says on each path; those without an answer are left out."""
    client = ControlClient(base_url, {}, key or None)

    async def one(path: str) -> tuple[str, Said] | None:
        try:
            return path, await client.get(path, timeout_s=_ASK_TIMEOUT_S)
        except ControlFailed:
            return None

    try:
        said = await asyncio.gather(*(one(path) for path in PATHS))
    finally:
        await client.close()
    return dict(pair for pair in said if pair is not None)


async def _connects(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.transport.abort()
    return True


async def _with_proven_unit(running: Running, kind: str) -> Running:
    """Keep the unit only if it is the engine's: a terminal or a cron daemon is a service as well.

    It is, where the process is its main one, or descends from one that names the engine.
    """
    state = await Systemctl(running.unit, running.scope).show()
    if isinstance(state, UnitState) and state.main_pid and state.can_start and state.can_stop:
        if state.main_pid == running.pid:
            return running
        main = await asyncio.to_thread(read, state.main_pid)
        if await asyncio.to_thread(front_of, {state.main_pid, running.pid}) == state.main_pid and any(
            word in " ".join(main.argv).lower() for word in (kind, command_kind(running.argv) or kind)
        ):
            return running
    return dataclasses.replace(running, unit="")


def tabby_keys(cwd: Path | None) -> tuple[str, str]:
    """TabbyAPI's key for requests and its key for loading, from the file it keeps them in."""
    if cwd is None:
        return "", ""
    try:
        data = yaml.safe_load((cwd / "api_tokens.yml").read_text("utf-8")[:10_000])
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return "", ""
    if not isinstance(data, dict):
        return "", ""
    found = [data.get(name) for name in ("api_key", "admin_key")]
    own, admin = (
        value if isinstance(value, str) and value.isprintable() and value.isascii() else "" for value in found
    )
    return own, admin
