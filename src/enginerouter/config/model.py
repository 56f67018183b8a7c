"""The typed model of the whole configuration file. Attribute names are the YAML keys; engines: `engines.py`.

The default of every key stands here and nowhere else. `load.load` fills it; once made it never changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from enginerouter.config.engines import (
    ApiSwap,
    EngineSettings,
    GenericProcess,
    Ollama,
    Profile,
    Remote,
    SystemdUnit,
)
from enginerouter.config.key import Key

__all__ = [
    "Alias",
    "ApiKey",
    "ApiSwap",
    "Cache",
    "Config",
    "Discover",
    "EngineSettings",
    "GenericProcess",
    "Health",
    "Model",
    "Ollama",
    "PortProbe",
    "Profile",
    "Remote",
    "SystemdUnit",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key that clients may use. After loading, `key` holds the secret, wherever it came from."""

    name: Annotated[str, Key("Name for logs and status; `key-N` if left out.")] = ""
    key: Annotated[str, Key("The secret itself. Give one of `key`, `key_env`, `key_file`.", is_secret=True)] = field(
        default="", repr=False
    )
    key_env: Annotated[str | None, Key("Environment variable that holds the secret.", nonempty=True)] = None
    key_file: Annotated[Path | None, Key("File that holds the secret.")] = None
    admin: Annotated[bool, Key("May this key swap, unload, reload and see logs? A plain string key may.")] = False
    models: Annotated[tuple[str, ...], Key("Globs of the models and aliases it may name.", nonempty=True)] = ("*",)
    remote: Annotated[bool, Key("May it spend on remote engines?")] = True
    priority: Annotated[int, Key("Higher goes first when engines must be swapped.", ge=-1000, le=1000)] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """An id that clients may name, and the engine that serves it."""

    id: Annotated[str, Key("The id that clients name.", form="name")]
    engine: Annotated[str, Key("Name of the engine that serves it.", nonempty=True)]
    display_name: Annotated[str | None, Key("Name shown to people; null = the id.")] = None
    disable_thinking_below_max_tokens: Annotated[
        int | None, Key("Switch thinking off for chats that allow fewer tokens than this.", "tokens", ge=1)
    ] = None
    set_params: Annotated[Mapping[str, Any], Key("Values written into every request; dotted paths are allowed.")] = (
        field(default_factory=dict)
    )
    default_params: Annotated[
        Mapping[str, Any], Key("Values for keys that a request leaves out; dotted paths are allowed.")
    ] = field(default_factory=dict)
    strip_params: Annotated[tuple[str, ...], Key("Keys removed from every request; dotted paths are allowed.")] = ()
    context_length: Annotated[
        int | None,
        Key(
            "Context window shown to clients; null = what the engine, its command line or the model file say.",
            "tokens",
            ge=1,
        ),
    ] = None
    description: Annotated[str, Key("Free text for people.")] = ""
    upstream_id: Annotated[str | None, Key("Name the engine knows it by; null = the id.", nonempty=True)] = None
    same_as: Annotated[
        str | None,
        Key("Label of models whose embeddings can be mixed (same weights elsewhere).", nonempty=True),
    ] = None
    tags: Annotated[
        tuple[str, ...],
        Key(
            "Free labels. Where some are `completion`, `tools`, `insert`, `vision`, `embedding` or `thinking`, these "
            "are what clients are told the model can do."
        ),
    ] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """A client-facing name: a rename of one model (`target`) or an ordered `chain` of targets."""

    name: str
    target: Annotated[str | None, Key("The model it stands for. A plain string is short for this.", nonempty=True)] = (
        None
    )
    chain: Annotated[
        tuple[str, ...],
        Key("Targets tried in order: `engine/model`, a model id or another alias.", form="name"),
    ] = ()
    description: Annotated[str, Key("Free text for people.")] = ""
    local_only: Annotated[bool, Key("Never leave this machine.")] = False
    hidden: Annotated[bool, Key("Leave it out of model lists.")] = False
    go_on_after_s: Annotated[
        float | None,
        Key("Pass over a local target whose queue and swap would take longer; null = wait it out.", "s", ge=0),
    ] = None
    first_byte_timeout_s: Annotated[
        float | None, Key("Longest wait for a target's first byte; null = the engine's.", "s", gt=0)
    ] = None
    on_mismatch: Annotated[
        Literal["fail", "next"], Key("What to do when a target cannot serve this kind of request.")
    ] = "fail"
    mix_embeddings: Annotated[bool, Key("Let embeddings go on to another model.")] = False
    retry_unsafe: Annotated[bool, Key("Let calls go on that may be billed or stored twice.")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PortProbe:
    """Accepted for older configs; has no effect."""

    enabled: Annotated[bool, Key("Older configs: look for servers on known ports.")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Discover:
    """Whether models are found by asking the engines."""

    enabled: Annotated[
        bool,
        Key(
            "Processes (`generic_process`, `systemd_unit`) with `discover_models` also serve what they list while they "
            "run, what they listed when they ran last, and what their command line names; and the lists of all engines "
            "are remembered over a restart. Nothing is ever started to be asked."
        ),
    ] = False
    collision: Annotated[Literal["config_order"], Key("Who serves an id that two engines report: the first.")] = (
        "config_order"
    )
    port_probe: Annotated[
        PortProbe,
        Key("Older configs: a switch that did nothing.", no_effect="ports are not probed while serving"),
    ] = field(default_factory=PortProbe)


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """When a target counts as broken, and how it is watched."""

    enabled: Annotated[bool, Key("Probe remote, always-on and resident engines in the background.")] = True
    probe_interval_s: Annotated[float, Key("Time between background probes.", "s", ge=1)] = 30.0
    probe_timeout_s: Annotated[float, Key("Time-out of one background probe.", "s", gt=0)] = 3.0
    failures_to_open: Annotated[int, Key("Failures in a row that open a circuit.", ge=1)] = 2
    open_s: Annotated[float, Key("How long an open circuit passes a target over.", "s", gt=0)] = 60.0
    rate_limit_cooldown_s: Annotated[float, Key("Cool-down after 429 without `Retry-After`.", "s", ge=0)] = 30.0
    credit_cooldown_s: Annotated[float, Key("Cool-down after a provider refused our key or our credit.", "s", ge=0)] = (
        3600.0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Answers kept so that a repeated request wakes nothing."""

    embeddings: Annotated[bool, Key("Keep answers of embeddings and rerank.")] = True
    deterministic: Annotated[
        bool, Key("Keep answers of chats with `temperature: 0` that are not streamed and have no tools.")
    ] = False
    ttl_s: Annotated[float, Key("How long an answer is kept.", "s", gt=0)] = 3600.0
    max_mib: Annotated[
        int,
        Key(
            "Largest size of all answers together; a larger answer than a quarter of it is not kept. How much a Redis "
            "holds is its own setting (`maxmemory`).",
            "MiB",
            ge=1,
        ),
    ] = 256
    store: Annotated[
        str,
        Key(
            "`memory`, or the URL of a Redis (`redis://user:password@host:port/db`, `rediss://` for TLS), which needs "
            "`pip install 'enginerouter[redis]'`. On another machine it never gets anything of `local_only` aliases.",
            form="store",
            is_secret=True,
        ),
    ] = field(default="memory", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole file."""

    host: Annotated[
        str,
        Key(
            "Address to listen on; `0.0.0.0` = all interfaces.",
            nonempty=True,
            hint="0.0.0.0 = all interfaces",
            reload="restart",
        ),
    ] = "127.0.0.1"
    port: Annotated[int, Key("Port to listen on; 0 = any free one.", ge=0, le=65535, reload="restart")] = 8077
    api_keys: Annotated[
        tuple[ApiKey, ...],
        Key("Keys that clients must send; empty = no key is asked for.", shorthand="key", is_secret=True),
    ] = ()
    allowed_hosts: Annotated[tuple[str, ...], Key("Names by which clients may reach the router without a key.")] = ()
    allowed_origins: Annotated[
        tuple[str, ...],
        Key("Web origins that may call the router (CORS), like `https://chat.example`.", form="origin"),
    ] = ()
    tls_cert_file: Annotated[
        Path | None,
        Key("Certificate chain in PEM form; serves HTTPS. A reload reads the file again.", reload="restart"),
    ] = None
    tls_key_file: Annotated[Path | None, Key("Private key of the certificate.", reload="restart")] = None
    allow_destructive_ollama_api: Annotated[
        bool, Key("Allow create, copy, delete, push and blobs of the Ollama API.")
    ] = False
    max_body_mib: Annotated[int, Key("Largest request body.", "MiB", ge=1)] = 256
    max_buffered_mib: Annotated[int, Key("All bodies of waiting requests together.", "MiB", ge=1)] = 512
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], Key("Least level logged.")] = "INFO"
    log_file: Annotated[
        Path | None, Key("Log file, kept in four parts of 5 MB; null = standard error only.", reload="restart")
    ] = Path("logs/router.log")
    log_format: Annotated[Literal["text", "json"], Key("Form of the log lines.")] = "text"
    state_file: Annotated[Path, Key("File for what is learned and what was launched.", reload="restart")] = Path(
        "state.json"
    )
    swap_keepalive_enabled: Annotated[bool, Key("Send bytes to streaming clients that wait.")] = True
    swap_keepalive_interval_s: Annotated[
        float,
        Key(
            "Time between keep-alive bytes.",
            "s",
            ge=0.1,
            hint="to switch keep-alive off, set swap_keepalive_enabled: false",
        ),
    ] = 5.0
    commit_after_s: Annotated[
        float, Key("How long the status line is held back while queueing and swapping.", "s", ge=0)
    ] = 3.0
    first_byte_commit_s: Annotated[float, Key("How long it is held back while the engine is silent.", "s", ge=0)] = 10.0
    prefill_keepalive: Annotated[bool, Key("Keep-alive also while the engine reads the prompt.")] = True
    json_keepalive_after_s: Annotated[
        float | None,
        Key("Leading white space in non-streaming answers after this long; null = never.", "s", ge=0),
    ] = None
    swap_progress: Annotated[
        Literal["comment", "event"], Key("`event` sends progress as events, which crash common SDK loops.")
    ] = "comment"
    drain_timeout_s: Annotated[float, Key("How long a drain waits; see `on_drain_timeout`.", "s", ge=0)] = 30.0
    on_drain_timeout: Annotated[
        Literal["wait", "cut", "refuse"],
        Key(
            "`wait`: only answers silent for that long are cut; `cut`: all are cut then; "
            "`refuse`: the swap is called off.",
        ),
    ] = "wait"
    shutdown_timeout_s: Annotated[float, Key("How long running answers may go on at shutdown.", "s", ge=0)] = 10.0
    on_exit: Annotated[Literal["stop", "keep"], Key("What becomes of launched engines when the router ends.")] = "stop"
    swap_memory_settle_timeout_s: Annotated[
        float, Key("Longest wait for freed memory to come back; 0 = do not wait.", "s", ge=0)
    ] = 25.0
    memory_source: Annotated[
        Literal["auto", "meminfo", "psutil", "nvidia", "amd", "none"],
        Key(
            "Where free memory is read. `auto`: discrete NVIDIA cards, else discrete AMD cards, else the host "
            "(`meminfo` on Linux, `psutil` elsewhere), which also is the pool of unified machines. "
            "`nvidia` and `amd` do not start without a card. `enginerouter check` says what was picked.",
            reload="restart",
        ),
    ] = "auto"
    memory_budget_gib: Annotated[
        float | None,
        Key("Memory that resident engines may fill together; null = one at a time.", "GiB", gt=0),
    ] = None
    together: Annotated[
        tuple[tuple[str, ...], ...], Key("Lists of engines that may stay together without figures.")
    ] = ()
    swap_min_residency_s: Annotated[float, Key("A fresh engine serves at least this long.", "s", ge=0)] = 2.0
    swap_max_wait_s: Annotated[
        float, Key("After this long a waiting request closes the gate of the engine in its way.", "s", ge=0)
    ] = 15.0
    swap_linger_s: Annotated[float, Key("An idle engine is kept this long for a next request.", "s", ge=0)] = 0.25
    idle_unload_s: Annotated[float | None, Key("Free engines after this long without a request.", "s", gt=0)] = None
    max_queued_requests: Annotated[int, Key("Requests that may wait; more get 429.", ge=1)] = 256
    queue_timeout_s: Annotated[float, Key("Longest wait until the swap for a request begins.", "s", gt=0)] = 600.0
    upstream_connect_timeout_s: Annotated[float, Key("Longest wait for a connection to an engine.", "s", gt=0)] = 15.0
    upstream_stall_timeout_s: Annotated[
        float | None, Key("Longest silence of an engine within an answer; null = no limit.", "s", gt=0)
    ] = None
    engines: Annotated[Mapping[str, EngineSettings], Key("The engines, by name.")] = field(default_factory=dict)
    models: Annotated[tuple[Model, ...], Key("The models that clients may name.")] = ()
    aliases: Annotated[
        Mapping[str, Alias],
        Key("Other names for models. Names may be globs (`claude-*`); exact names win.", shorthand="target"),
    ] = field(default_factory=dict)
    default_model: Annotated[
        str | None, Key("Model of requests that name none; null = the resident one.", nonempty=True)
    ] = None
    discover: Annotated[Discover, Key("Finding models.")] = field(default_factory=Discover)
    health: Annotated[Health, Key("Circuits and background probes.")] = field(default_factory=Health)
    cache: Annotated[Cache | None, Key("Cache of answers; off by default, `on` for the defaults.")] = None
    metrics_require_key: Annotated[bool, Key("Ask for a key on `/metrics` too.")] = False
    # Not YAML: the file this came from, and the folder that relative paths are relative to.
    path: Path | None = None
    base_dir: Path = field(default_factory=Path)
