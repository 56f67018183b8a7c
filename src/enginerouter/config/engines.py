"""The settings of every kind of engine. Attribute names are the YAML keys.

Adding a kind = one class here, one line in `ENGINE_TYPES`, one engine file, one preset.
`Ds4` is only a spelling of older configs: the loader turns it into a `SystemdUnit` or a `GenericProcess`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from enginerouter.config.key import Key

Dialect = Literal["openai", "ollama", "anthropic"]

_DAEMON_UNIT_DOC = (
    "systemd unit behind the server: started when a swap needs the server and nobody listens at `base_url`, if that "
    "is this machine; never stopped or restarted. null = none."
)
_DAEMON_SCOPE_DOC = (
    "Whose manager runs `systemd_unit`. A unit of the system that may not be started is tried with `sudo -n`."
)
_CRASH_DOC = "Failed starts in a row after which the start circuit opens."


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What every engine has. `name` is its key under `engines:`."""

    name: str
    type: Annotated[str, Key("The kind of engine.", reload="engine")]
    base_url: Annotated[
        str | None,
        Key(
            "Where the engine answers, as `http(s)://host[:port][/path]`. May be left out for processes that "
            "the router launches: a free port is chosen and `{port}` in `start_cmd` carries it. Where the path ends "
            "in a version or `openai` (`https://openrouter.ai/api/v1`), it stands for the `/v1` of requests.",
            form="url",
            reload="engine",
        ),
    ] = None
    enabled: Annotated[bool, Key("A disabled engine is never started and serves nothing.")] = True
    start_timeout_s: Annotated[float, Key("Longest wait for the engine to become ready.", "s", gt=0)] = 300.0
    stop_timeout_s: Annotated[
        float,
        Key(
            "Longest wait after the stop signal before it is killed; of a server that is always on: longest wait "
            "for its unload when the router ends.",
            "s",
            ge=0,
        ),
    ] = 30.0
    api: Annotated[
        tuple[Dialect, ...],
        Key("Dialects that the engine serves itself; requests in another one are translated.", nonempty=True),
    ] = ("openai",)
    memory_gib: Annotated[
        float | Literal["auto"] | None,
        Key(
            "Memory the engine needs. With `memory_budget_gib`, engines that say so stay together while the "
            "sum fits; `auto` uses what was measured; without it the engine is always alone.",
            "GiB",
            gt=0,
        ),
    ] = None
    pin: Annotated[bool, Key("Never evict this engine for another one.")] = False
    idle_unload_s: Annotated[
        float | None,
        Key("Free the engine after this long without a request; null = the global value.", "s", gt=0),
    ] = None
    preload: Annotated[bool, Key("Start the engine when the router starts.")] = False
    warmup: Annotated[bool, Key("Send one tiny request after the engine is ready.")] = False
    max_in_flight: Annotated[
        int | None, Key("Requests served at the same time; more wait in the queue; null = no limit.", ge=1)
    ] = None
    headers: Annotated[
        Mapping[str, str],
        Key("Headers sent to the engine with requests.", form="header", as_text=True, is_secret=True),
    ] = field(default_factory=dict, repr=False)
    control_headers: Annotated[
        Mapping[str, str],
        Key(
            "Headers sent with the router's own calls only (ready, load, unload), never with user traffic.",
            form="header",
            as_text=True,
            is_secret=True,
        ),
    ] = field(default_factory=dict, repr=False)
    api_key: Annotated[str | None, Key("Key that the engine asks for; sent only to it.", is_secret=True)] = field(
        default=None, repr=False
    )
    api_key_env: Annotated[str | None, Key("Environment variable that holds `api_key`.", nonempty=True)] = None
    discover_models: Annotated[
        bool,
        Key(
            "Ask the engine for its model ids and serve those too (`api_swap`, `remote`; `ollama` is always asked; "
            "processes with `discover.enabled`)."
        ),
    ] = False
    served_models: Annotated[tuple[str, ...], Key("Model ids the engine is known to serve.", form="name")] = ()
    tags_cache_ttl_s: Annotated[float, Key("How long a fetched model list is used.", "s", ge=0)] = 30.0
    ready_path: Annotated[
        str | None,
        Key("Path asked to see whether the engine is ready; null = as the kind of engine does.", form="path"),
    ] = None
    ready_check: Annotated[
        str,
        Key(
            "What the answer must also say: `model:<id>` (the id is listed) or `key==value` (in the JSON).",
            form="ready_check",
        ),
    ] = ""
    ready_status: Annotated[int, Key("HTTP status that means ready.", ge=100, le=599)] = 200
    ready_probe_timeout_s: Annotated[float, Key("Time-out of one readiness probe (SGLang wants 25).", "s", gt=0)] = 2.0
    first_byte_timeout_s: Annotated[
        float | None, Key("Longest wait for the first byte of an answer; null = no limit.", "s", gt=0)
    ] = None
    holds_memory: Annotated[
        bool,
        Key(
            "False lets a local engine live beside all others: it is never evicted and starts at once.", reload="engine"
        ),
    ] = True
    trust_local: Annotated[bool, Key("Treat `base_url` as this machine, whatever its address or name.")] = False
    rollback: Annotated[bool, Key("Start this engine again if a swap away from it fails.")] = False
    keep_slots: Annotated[
        bool,
        Key(
            "llama.cpp: save the slots (what it has read of conversations) to the folder of `--slot-save-path` before "
            "the process is freed, and restore them after it starts."
        ),
    ] = False
    auto_restart: Annotated[bool, Key("Start it again at once after a crash, not at the next request.")] = False
    max_restarts: Annotated[int, Key(_CRASH_DOC, ge=1)] = 3
    sleep_path: Annotated[
        str | None,
        Key(
            "Path that puts a process to sleep instead of stopping it (vLLM: `/sleep?level=1`); `is_sleeping` beside "
            "it is asked whether it does. What it keeps while it sleeps is not counted; `idle_unload_s`, an unload and "
            "a hold end it for good.",
            form="path",
        ),
    ] = None
    wake_path: Annotated[
        str | None, Key("Path that wakes it again (vLLM: `/wake_up`); if that fails it is restarted.", form="path")
    ] = None
    # A remote engine whose key is not set: chains pass it over, direct requests say so.
    unconfigured: bool = False

    @property
    def holds_local_memory(self) -> bool:
        """Whether the engine takes part in swaps at all."""
        return self.holds_memory and self.type != "remote"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A model of a `generic_process` engine with its own launch flags. `id` is its key in `profiles:`."""

    id: str
    model: Annotated[Path, Key("The model file; `{model}` in `start_cmd`.", reload="engine")]
    name: Annotated[str | None, Key("Name shown to people; null = the id.")] = None
    flags: Annotated[
        Mapping[str, Any],
        Key(
            "Launch flags, `{flags}` in `start_cmd`: `ctx-size: 8192` becomes `--ctx-size 8192`, `c: 8192` "
            "becomes `-c 8192`, and a name that begins with `-` stays as it is; on/off/yes/no become `on` or `off`; "
            "null is a bare switch; a list repeats the flag; numbers stay as written.",
            reload="engine",
        ),
    ] = field(default_factory=dict)
    env: Annotated[
        Mapping[str, str],
        Key(
            "Environment of this profile, over the engine's.", form="env", as_text=True, is_secret=True, reload="engine"
        ),
    ] = field(default_factory=dict, repr=False)
    memory_gib: Annotated[float | Literal["auto"] | None, Key("As for engines.", "GiB", gt=0)] = None
    pin: Annotated[bool, Key("As for engines.")] = False
    preload: Annotated[bool, Key("As for engines.")] = False
    idle_unload_s: Annotated[float | None, Key("As for engines.", "s", gt=0)] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenericProcess(EngineSettings):
    """A server that the router launches, supervises and stops."""

    type: Annotated[Literal["generic_process"], Key("The kind of engine.", reload="engine")] = "generic_process"
    start_cmd: Annotated[
        tuple[str, ...],
        Key(
            "The command, as a list of arguments; one string is split like a shell would. No shell is run. "
            "`{port}` becomes the port; with profiles `{model}`, `{id}` and `{flags}` become the profile's.",
            reload="engine",
            is_command=True,
            as_text=True,
            nonempty=True,
        ),
    ]
    env: Annotated[
        Mapping[str, str],
        Key("Environment variables, over the router's own.", form="env", as_text=True, is_secret=True, reload="engine"),
    ] = field(default_factory=dict, repr=False)
    cwd: Annotated[Path | None, Key("Working directory; null = the router's.", reload="engine")] = None
    stop_cmd: Annotated[
        tuple[str, ...],
        Key(
            "Command that stops it, run before the stop signal; containers need one (`docker stop NAME`).",
            is_command=True,
            as_text=True,
        ),
    ] = ()
    stop_signal: Annotated[str, Key("Signal that asks it to stop: `TERM`, `SIGTERM` or 15.", form="signal")] = "TERM"
    process_pattern: Annotated[
        str | None,
        Key(
            "Older configs: a pattern to find processes by.",
            no_effect="the router knows its own processes by pid and start time",
        ),
    ] = None
    log_file: Annotated[
        Path | None,
        Key("File for its output, opened for append; null = `logs/engines/<engine>.log` beside the config."),
    ] = None
    ready_path: Annotated[str | None, Key("Path that answers `ready_status` when it is ready.", form="path")] = (
        "/health"
    )
    profiles: Annotated[
        Mapping[str, Profile], Key("Models with their own launch flags; switching restarts the process.")
    ] = field(default_factory=dict)
    manifest: Annotated[
        Path | None,
        Key(
            "YAML or JSON file that holds `profiles`, at its top or under that key; model paths count from its "
            "folder; `display_name` and `model_path` are accepted for `name` and `model`."
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSwap(EngineSettings):
    """A server that is always on and loads and unloads its models over HTTP (TabbyAPI, LM Studio, …)."""

    type: Annotated[Literal["api_swap"], Key("The kind of engine.", reload="engine")] = "api_swap"
    health_path: Annotated[str, Key("Path that answers when the server is up.", form="path")] = "/v1/models"
    load_path: Annotated[
        str, Key("Path that loads a model; empty = the server loads on request.", form="path_or_empty")
    ] = ""
    load_method: Annotated[Literal["POST", "GET", "PUT", "DELETE", "PATCH"], Key("Method of `load_path`.")] = "POST"
    load_body: Annotated[
        Mapping[str, Any], Key("JSON body of `load_path`; `{model}` becomes the model, at any depth.")
    ] = field(default_factory=dict)
    load_timeout_s: Annotated[float, Key("Longest wait for a load.", "s", gt=0)] = 120.0
    unload_path: Annotated[
        str, Key("Path that unloads a model; empty = its memory cannot be freed.", form="path_or_empty")
    ] = ""
    unload_method: Annotated[Literal["POST", "GET", "PUT", "DELETE", "PATCH"], Key("Method of `unload_path`.")] = "POST"
    unload_body: Annotated[
        Mapping[str, Any], Key("JSON body of `unload_path`; `{model}` becomes the model, at any depth.")
    ] = field(default_factory=dict)
    unload_timeout_s: Annotated[float, Key("Longest wait until nothing is loaded.", "s", gt=0)] = 60.0
    loaded_path: Annotated[str | None, Key("Path that lists the loaded models.", form="path")] = None
    loaded_models_key: Annotated[
        str,
        Key(
            "Key of the list in that answer; absent there = the whole object is one entry. "
            "Empty: the answer is one object, or a bare list."
        ),
    ] = "models"
    loaded_name_key: Annotated[str, Key("Key of a model's name in an entry.", nonempty=True)] = "name"
    loaded_filter: Annotated[
        str, Key("Only entries for which this `key==value` holds are loaded.", form="equality")
    ] = ""
    loaded_id_key: Annotated[str, Key("Key of the id that unloading wants, if it is not the name.")] = ""
    systemd_unit: Annotated[str | None, Key(_DAEMON_UNIT_DOC, nonempty=True)] = None
    systemd_scope: Annotated[Literal["user", "system"], Key(_DAEMON_SCOPE_DOC)] = "system"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ollama(EngineSettings):
    """An Ollama daemon: never stopped, freed by unloading its models."""

    type: Annotated[Literal["ollama"], Key("The kind of engine.", reload="engine")] = "ollama"
    base_url: Annotated[str | None, Key("Where the daemon answers.", form="url", reload="engine")] = (
        "http://127.0.0.1:11434"
    )
    api: Annotated[tuple[Dialect, ...], Key("Dialects that the engine serves itself.", nonempty=True)] = (
        "openai",
        "ollama",
    )
    health_path: Annotated[str, Key("Path that answers when the daemon is up.", form="path")] = "/api/tags"
    unload_timeout_s: Annotated[float, Key("Longest wait until nothing is loaded.", "s", gt=0)] = 60.0
    systemd_unit: Annotated[str | None, Key(_DAEMON_UNIT_DOC, nonempty=True)] = "ollama.service"
    systemd_scope: Annotated[Literal["user", "system"], Key(_DAEMON_SCOPE_DOC)] = "system"


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemdUnit(EngineSettings):
    """A systemd unit, started and stopped through `systemctl`."""

    type: Annotated[Literal["systemd_unit"], Key("The kind of engine.", reload="engine")] = "systemd_unit"
    unit: Annotated[str, Key("Name of the unit.", nonempty=True, reload="engine")]
    scope: Annotated[Literal["user", "system"], Key("Whose manager runs the unit.", reload="engine")] = "user"
    ready_path: Annotated[str | None, Key("Path that answers `ready_status` when it is ready.", form="path")] = (
        "/v1/models"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote(EngineSettings):
    """An OpenAI-compatible provider or another box: holds no memory here and is never swapped."""

    type: Annotated[Literal["remote"], Key("The kind of engine.", reload="engine")] = "remote"
    first_byte_timeout_s: Annotated[
        float | None, Key("Longest wait for the first byte of an answer; null = no limit.", "s", gt=0)
    ] = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ds4(EngineSettings):
    """The old name of `systemd_unit` (with `control: process`: of `generic_process`), with its defaults."""

    type: Annotated[Literal["ds4"], Key("The kind of engine.", reload="engine")] = "ds4"
    base_url: Annotated[str | None, Key("Where the engine answers.", form="url", reload="engine")] = (
        "http://172.17.0.1:8099"
    )
    control: Annotated[
        Literal["systemd-user", "process"],
        Key("Run it as a systemd user unit, or launch `serve_script`.", reload="engine"),
    ] = "systemd-user"
    systemd_user_unit: Annotated[str, Key("Name of the user unit.", nonempty=True, reload="engine")] = "ds4.service"
    serve_script: Annotated[str, Key("Program launched with `control: process`.", reload="engine")] = ""
    process_pattern: Annotated[
        str | None,
        Key(
            "Older configs: a pattern to find processes by.",
            no_effect="the router knows its own processes by pid and start time",
        ),
    ] = "ds4/ds4-server"
    health_path: Annotated[str, Key("Path that answers when it is ready.", form="path")] = "/v1/models"
    start_timeout_s: Annotated[float, Key("Longest wait for the engine to become ready.", "s", gt=0)] = 240.0
    stop_timeout_s: Annotated[float, Key("Longest wait for it to stop before it is killed.", "s", ge=0)] = 45.0
    log_file: Annotated[Path | None, Key("File for its output, with `control: process`.")] = Path("logs/ds4-server.log")


ENGINE_TYPES: Mapping[str, type[EngineSettings]] = MappingProxyType(
    {
        "generic_process": GenericProcess,
        "api_swap": ApiSwap,
        "ollama": Ollama,
        "systemd_unit": SystemdUnit,
        "remote": Remote,
        "ds4": Ds4,
    }
)

# Older configs could describe two engines at the top level, without `engines:`. Both existed unless disabled.
LEGACY_SECTIONS: Mapping[str, type[EngineSettings]] = MappingProxyType({"ds4": Ds4, "ollama": Ollama})
