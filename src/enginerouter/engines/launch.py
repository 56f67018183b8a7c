"""How a slot of a `generic_process` engine is launched: one plain value, made by plain functions.

Nothing here starts anything. `plan_launch` turns settings and a slot into a `Launch`; `problems_of` says what can
be seen to be wrong with it before any memory is freed for it (files are looked at: call that in a thread).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from enginerouter.config.engines import ApiSwap, EngineSettings, GenericProcess, Ollama, Profile, SystemdUnit
from enginerouter.engines.probe import ReadyRule
from enginerouter.engines.proctree import MARKER
from enginerouter.slots import SlotId

CHOSEN_HOST = "127.0.0.1"
# After the stop time: until what was killed is seen to be gone, and until a container's port is closed.
KILL_TIMEOUT_S = 10.0
CONTAINER_PORT_TIMEOUT_S = 5.0
# What slots have read is saved when the router ends, too, but a service manager waits for that end.
SAVE_AT_END_TIMEOUT_S = 10.0
_NOT_INHERITED = ("NOTIFY_SOCKET", MARKER)
_NOT_INHERITED_PREFIXES = ("WATCHDOG_", "LISTEN_")
_PLACE = re.compile(r"\{(port|model|id|flags)\}")
# `docker stop` gives a container this long where nothing else is said.
_CONTAINER_GRACE_S = 10.0
_GRACE_FLAGS = ("-t", "--time", "--timeout")
_MODEL_FLAGS = ("-m", "--model", "--model-path", "--mmproj")
# Programs that run the rest of the command somewhere else: its paths and processes are not of this machine.
_CONTAINERS = ("docker", "podman", "nerdctl")
_ELSEWHERE = (*_CONTAINERS, "ssh", "kubectl", "wsl", "wsl.exe", "distrobox", "toolbox")


@dataclass(frozen=True, slots=True)
class Launch:
    """`env` are the additions to the router's own environment; `digest` tells whether a launch has changed.

    `model` is the profile's file, where the slot is a profile.
    """

    slot: SlotId
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path | None
    stop_argv: tuple[str, ...]
    address: str
    host: str
    port: int
    log_path: Path
    ready: ReadyRule
    is_container: bool
    digest: str
    model: Path | None = None


def plan_launch(settings: GenericProcess, slot: SlotId, base_dir: Path, chosen_port: int) -> Launch:
    """`chosen_port` is used where the settings name no address. Raises KeyError for a profile that there is not."""
    address, host, port = address_of(settings, chosen_port)
    profile = settings.profiles[slot.model] if slot.model is not None else None
    said = _placeholders(profile, port)

    def fill(text: str) -> str:
        return _filled(text, said)

    argv = tuple(_at_home(word) for word in _command(settings.start_cmd, profile, said))
    env = {name: fill(value) for name, value in {**settings.env, **(profile.env if profile else {})}.items()}
    return Launch(
        slot=slot,
        argv=argv,
        env=env,
        cwd=base_dir / settings.cwd if settings.cwd else None,
        stop_argv=tuple(fill(word) for word in settings.stop_cmd),
        address=address,
        host=host,
        port=port,
        log_path=log_path(settings, slot, base_dir),
        ready=ready_rule(settings, address, check=fill(settings.ready_check)),
        is_container=is_container_client(program(argv)),
        digest=digest_of(argv, env, settings.cwd),
        model=profile.model if profile else None,
    )


def log_path(settings: GenericProcess, slot: SlotId, base_dir: Path) -> Path:
    """Where what the slot's process prints goes."""
    return base_dir / (settings.log_file or f"logs/engines/{file_name(slot)}.log")


# --- the placeholders of profiles ---------------------------------------------------------------------------


def _placeholders(profile: Profile | None, port: int) -> dict[str, str]:
    """What stands for `{port}` and, with a profile, for the others. `{flags}` inside a word is quoted for a shell."""
    said = {"port": str(port)}
    if profile is not None:
        said |= {"model": str(profile.model), "id": profile.id}
        said["flags"] = shlex.join(_filled(word, said) for word in flag_words(profile.flags))
    return said


def _filled(text: str, said: Mapping[str, str]) -> str:
    """In one pass: what a value brings is not looked at again."""
    return _PLACE.sub(lambda found: said.get(found[1], found[0]), text)


def _command(words: Sequence[str], profile: Profile | None, said: Mapping[str, str]) -> Iterator[str]:
    for word in words:
        if word == "{flags}" and profile is not None:
            yield from (_filled(flag, said) for flag in flag_words(profile.flags))
        else:
            yield _filled(word, said)


def flag_words(flags: Mapping[str, object]) -> list[str]:
    """`{"ctx-size": "8192", "c": "1", "-ngl": "99", "jinja": None}` → --ctx-size 8192 -c 1 -ngl 99 --jinja."""
    words: list[str] = []
    for name, value in flags.items():
        flag = name if name.startswith("-") else f"-{name}" if len(name) == 1 else f"--{name}"
        for item in value if isinstance(value, tuple) else (value,):
            words += [flag] if item is None else [flag, str(item)]
    return words


def stop_timeout_s(launch: Launch, given_s: float) -> float:
    """How long the stop may take: as configured, but a container always has the grace that its stop command names."""
    if not launch.is_container:
        return given_s
    return max(given_s, container_grace_s(launch.stop_argv) + 5.0)


def end_seconds(settings: EngineSettings) -> float:
    """The longest that the end of a slot of this engine may take when the router stops."""
    if isinstance(settings, ApiSwap | Ollama):
        return min(settings.unload_timeout_s, settings.stop_timeout_s)
    if isinstance(settings, GenericProcess):
        stop_s = settings.stop_timeout_s
        if is_container_client(program(settings.start_cmd)):
            stop_s = max(stop_s, container_grace_s(settings.stop_cmd) + 5.0) + CONTAINER_PORT_TIMEOUT_S
        return stop_s + KILL_TIMEOUT_S + (SAVE_AT_END_TIMEOUT_S if settings.keep_slots else 0.0)
    return settings.stop_timeout_s + KILL_TIMEOUT_S if isinstance(settings, SystemdUnit) else 0.0


def container_grace_s(stop_argv: Sequence[str]) -> float:
    """What `docker stop -t N` (also `--time=N`, `-tN`) gives the container; without it, docker's own default."""
    for word, following in zip(stop_argv, (*stop_argv[1:], ""), strict=True):
        flag, equals, value = word.partition("=")
        said = value if equals else following
        if flag not in _GRACE_FLAGS:
            flag, said = word[:2], word[2:]
        if flag in _GRACE_FLAGS and said.isdecimal():
            return float(said)
    return _CONTAINER_GRACE_S


def address_of(settings: EngineSettings, chosen_port: int) -> tuple[str, str, int]:
    """Base URL without trailing slash, host, port."""
    if settings.base_url is None:
        return f"http://{CHOSEN_HOST}:{chosen_port}", CHOSEN_HOST, chosen_port
    address = settings.base_url.rstrip("/")
    parts = urlsplit(address)
    return address, parts.hostname or CHOSEN_HOST, parts.port or (443 if parts.scheme == "https" else 80)


def ready_rule(settings: EngineSettings, address: str, *, check: str | None = None) -> ReadyRule:
    return ReadyRule(
        url=address + settings.ready_path if settings.ready_path else "",
        status=settings.ready_status,
        check=settings.ready_check if check is None else check,
        probe_timeout_s=settings.ready_probe_timeout_s,
    )


def is_container_client(program_name: str) -> bool:
    return program_name in _CONTAINERS


def digest_of(argv: Sequence[str], env: Mapping[str, str], cwd: Path | None) -> str:
    """A hash, because the environment may hold secrets and this is written to disk."""
    whole = json.dumps([list(argv), sorted(env.items()), str(cwd) if cwd else None])
    return hashlib.sha256(whole.encode(errors="surrogateescape")).hexdigest()


def child_environment(outer: Mapping[str, str], launch: Launch, marker: str | None) -> dict[str, str]:
    """What the child inherits: ours, but for what systemd meant for us alone, then the launch's, then its marker."""
    env = {
        name: value
        for name, value in outer.items()
        if name not in _NOT_INHERITED and not name.startswith(_NOT_INHERITED_PREFIXES)
    }
    env.update(launch.env)
    if marker is not None:
        env[MARKER] = marker
    return env


@dataclass(frozen=True, slots=True)
class Marker:
    """Every process of a launch carries this in its environment, wherever it moves."""

    router_id: str
    slot: str
    token: str

    def __str__(self) -> str:
        return f"{self.router_id}:{self.slot}:{self.token}"


def new_marker(router_id: str, slot: SlotId) -> Marker:
    return Marker(router_id, str(slot), secrets.token_hex(8))


def parse_marker(text: str) -> Marker | None:
    router_id, _, rest = text.partition(":")
    slot, _, token = rest.rpartition(":")
    return Marker(router_id, slot, token) if router_id and slot and token else None


def problems_of(launch: Launch, outer: Mapping[str, str]) -> str | None:
    """What keeps this launch from working at all, with what to do; None if nothing can be seen."""
    folder = launch.cwd or Path()  # ours may have been removed: then only full paths work
    if not folder.is_dir():
        return f"its folder {str(folder)!r} does not exist: correct `cwd`"
    search = child_environment(outer, launch, None).get("PATH", os.defpath)
    binary = launch.argv[0]
    if find_program(binary, search, folder) is None:
        where = "" if _has_folder(binary) else " is not on PATH:"
        there = (folder / binary).exists() if _has_folder(binary) else False
        what = " is not executable:" if there else " does not exist:" if _has_folder(binary) else where
        return f"the program {binary!r}{what} install it, or correct `start_cmd`"
    if launch.model is not None and program(launch.argv) not in _ELSEWHERE and not launch.model.exists():
        return f"the model file '{launch.model}' does not exist: correct the profile, or download the model"
    for path in model_paths(launch.argv):
        if not (folder / Path(path).expanduser()).exists():
            return f"the model file {path!r} does not exist: correct `start_cmd`, or download the model"
    return None


def find_program(binary: str, search: str, folder: Path) -> str | None:
    """As the child will find it: relative names count from its folder."""
    if _has_folder(binary):
        return shutil.which(str(folder / binary))
    steps = [str(folder / step) for step in search.split(os.pathsep) if step]
    return shutil.which(binary, path=os.pathsep.join(steps))


def model_paths(argv: Sequence[str]) -> list[str]:
    """Values of model flags that are clearly files of this machine – not names that an engine would download."""
    if program(argv) in _ELSEWHERE:
        return []
    found = []
    for word, following in zip(argv, (*argv[1:], ""), strict=True):
        flag, equals, value = word.partition("=")
        if flag in _MODEL_FLAGS:
            found.append(value if equals else following)
    return [value for value in found if is_path(value)]


def is_path(value: str) -> bool:
    return value.startswith(("/", "./", "../", "~/")) or value.lower().endswith(".gguf")


def program(argv: Sequence[str]) -> str:
    return Path(argv[0]).name.lower() if argv else ""


def file_name(slot: SlotId) -> str:
    """A slot as a file name; different slots keep different names."""
    name = re.sub(r"[^\w.+-]", "_", str(slot))
    if name == str(slot) and not name.startswith("."):
        return name
    return f"{name.lstrip('.')}-{hashlib.sha256(str(slot).encode()).hexdigest()[:8]}"


def _has_folder(binary: str) -> bool:
    return os.sep in binary or bool(os.altsep and os.altsep in binary)


def _at_home(word: str) -> str:
    """`~/models/x.gguf` was written for a shell; no shell runs here."""
    return os.path.expanduser(word) if word.startswith("~/") else word
