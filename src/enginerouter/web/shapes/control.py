"""What control routes answer, typed. `docs/reference/http.md` is made from this; a test holds the answers against it.

`Said` is what a key means. Keys that are not always there are `NotRequired`, and say when they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from enginerouter.web.shapes import names

Standing = Literal["healthy", "degraded", "unhealthy", "unconfigured"]
Seconds = float
Bytes = int


class Alive(TypedDict):
    """Whether the router lives."""

    status: Annotated[Literal["ok", "shutting down", "stuck"], "stuck: with 503"]
    name: NotRequired[Annotated[str, "`enginerouter`; not with `stuck`"]]
    silent_s: NotRequired[Annotated[Seconds, "with `stuck`: since the coordinator has turned last"]]


class Waiter(TypedDict):
    """The requests of one key that wait for a slot."""

    key: Annotated[str, "its name; `local` where no keys are configured"]
    count: int
    longest_s: Seconds


class StartCircuit(TypedDict):
    """Starts that failed in a row."""

    failures: int
    open_for_s: Annotated[Seconds, "no start for so long; 0: at the next request"]
    reason: Annotated[str | None, "for admin keys"]


class Learned(TypedDict):
    """What was measured of a slot; null: not yet."""

    start_s: Seconds | None
    held_bytes: Bytes | None
    came_back_bytes: Annotated[Bytes | None, "the rise that its last settle saw"]


class SlotStatus(TypedDict):
    """One slot: an engine, or one profile of it."""

    slot: str
    engine: str
    models: Annotated[list[str], "those of it that this key may name"]
    phase: Annotated[str, "cold, starting, ready, draining, freeing, settling, crashed or stuck"]
    phase_s: Annotated[Seconds | None, "since when"]
    in_flight: int
    queued: int
    is_pinned: bool
    is_remote: Annotated[bool, "a provider: holds no memory here"]
    asleep_bytes: Annotated[Bytes | None, "what it keeps while it sleeps; null: it does not"]
    is_outdated: Annotated[bool, "its configuration has changed: it restarts when it is idle"]
    eta_s: Annotated[Seconds, "until a request would be served"]
    learned: Learned
    waiting: NotRequired[Annotated[list[Waiter], "for admin keys, where somebody waits"]]
    start_circuit: NotRequired[Annotated[StartCircuit, "after a start that failed"]]


class SwapRunning(TypedDict):
    """A swap that runs."""

    target: Annotated[str | None, "null: an unload"]
    reason: str
    step: Annotated[str, "checking, draining, freeing, settling or starting"]
    step_s: Seconds
    total_s: Seconds
    freed: Annotated[list[str], "slots, of those that this key may know"]
    seconds: Annotated[dict[str, Seconds], "by step"]


class LastSwap(TypedDict):
    """How the last swap to a slot ended."""

    at: Annotated[float, "Unix seconds"]
    result: Annotated[str, "ok, failed, refused, ended or cancelled"]
    total_s: Seconds
    seconds: Annotated[dict[str, Seconds], "by step"]
    settle: Annotated[str | None, "the verdict; null: there was nothing to wait for"]
    freed: list[str]
    error: Annotated[str | None, "why it did not end well; for admin keys"]


class Device(TypedDict):
    """A card."""

    name: str
    total_bytes: Bytes | None
    available_bytes: Bytes | None
    is_unified: Annotated[bool, "the host's memory is its memory"]
    problem: Annotated[str, "why it cannot be read"]


class Memory(TypedDict):
    """Where memory is read from."""

    source: str
    why: str
    available_bytes: Bytes | None
    devices: list[Device]
    problem: NotRequired[Annotated[str, "where nothing can be read"]]


class HoldStatus(TypedDict):
    """Memory that is kept free for another program."""

    owner: str
    mode: Annotated[Literal["refuse", "queue"], "what becomes of requests meanwhile"]
    is_free: bool
    since_s: Seconds
    expires_in_s: Seconds | None


class CacheStatus(TypedDict):
    """The cache of answers."""

    name: str
    is_up: bool
    entries: Annotated[int | None, "null: only the store knows"]
    bytes: Bytes | None
    hits: int
    misses: int
    hit_bytes: Bytes


class Told(TypedDict):
    """One thing wrong with a configuration."""

    message: str
    path: str
    file: str
    line: int | None
    hint: str
    text: Annotated[str, "all of it in one line"]


class Reloaded(TypedDict):
    """How a reload went."""

    at: Annotated[float, "Unix seconds"]
    reloaded: bool
    changes: NotRequired[
        Annotated[
            dict[str, Any],
            "names under `added`, `removed`, `changed`, `moved`, `live`; (engine, profile) under `changed_profiles`, "
            "`removed_profiles`; this and the following in `/status` for admin keys",
        ]
    ]
    needs_restart: NotRequired[Annotated[list[str], "keys that count when the router is started again"]]
    warnings: NotRequired[list[Told]]
    problems: NotRequired[Annotated[list[Told], "why nothing was changed"]]


class Status(TypedDict):
    """The whole state, as the key may see it."""

    version: str
    uptime_s: Seconds
    memory: Memory
    hold: HoldStatus | None
    cache: Annotated[CacheStatus | None, "null: it is off"]
    queued: Annotated[int, "requests that wait, in all"]
    reload: Annotated[Reloaded | None, "the last one"]
    health: Annotated[dict[str, Standing], "by engine"]
    swaps: list[SwapRunning]
    slots: list[SlotStatus]
    last_swaps: Annotated[dict[str, LastSwap], "by target"]


class Swapped(TypedDict):
    """A slot that was asked for."""

    slot: str
    phase: str
    seconds: NotRequired[Annotated[Seconds, "not with `?wait=0`"]]


class Unloading(TypedDict):
    """What leaves memory."""

    unloading: Annotated[list[str], "slots; one in use goes when its last request ends"]


class Reset(TypedDict):
    """What is tried again."""

    reset: Annotated[list[str], "slots"]
    circuits: Annotated[list[str], "`engine` or `engine/model`, of health circuits that were open"]


class Held(TypedDict):
    """A hold that was asked for."""

    hold: HoldStatus | None
    seconds: Seconds


class Released(TypedDict):
    """The end of a hold."""

    released: Annotated[bool, "false: there was none, of this owner"]


class Collision(TypedDict):
    """Models that two engines have."""

    served_by: str
    also_at: str
    models: list[str]


class DiscoveredModels(TypedDict):
    """What engines said of their models."""

    engines: Annotated[dict[str, list[str]], "ids by engine"]
    failed: Annotated[dict[str, str], "why one could not say"]
    collisions: list[Collision]


class Refusal(TypedDict):
    """An error that a request would get."""

    code: str
    message: str


class Wait(TypedDict):
    """What stands between a request and its engine."""

    refused: Annotated[Refusal | None, "what it would get at once"]
    slot: str
    phase: str
    in_flight: int
    queued: int
    eta_s: Seconds
    evicts: Annotated[list[str], "slots that would have to go"]
    start_circuit_open_for_s: Seconds
    is_held: bool


class ExplainedTarget(TypedDict):
    """What would become of a request at one target, were it the first."""

    target: Annotated[str | None, "null: it is fenced from this key"]
    passed_over: Annotated[str | None, "why a chain would not ask it now"]
    refused: Refusal | None
    model: NotRequired[Annotated[str, "as the engine knows it; this and the following not of what is fenced"]]
    path: NotRequired[Annotated[str, "another one where the request is translated"]]
    slot: NotRequired[str]
    phase: NotRequired[str]
    in_flight: NotRequired[int]
    queued: NotRequired[int]
    eta_s: NotRequired[Seconds]
    evicts: NotRequired[Annotated[list[str], "slots that would have to go"]]
    start_circuit_open_for_s: NotRequired[Seconds]
    is_held: NotRequired[bool]
    changes: NotRequired[Annotated[list[dict[str, Any]], "`step`, `path`, `value`: what would be changed in the body"]]


class Explained(TypedDict):
    """What would become of a request."""

    asked: str
    served_by: Annotated[str | None, "the first that is neither passed over nor refused"]
    targets: list[ExplainedTarget]
    unknown: Annotated[list[str], "of its chain, what is no target now"]


class LastMinute(TypedDict):
    """Calls of the last 60 s."""

    ok: int
    failed: int


class CircuitStatus(TypedDict):
    """The health circuit of a target, or of the probes of an engine."""

    circuit: Annotated[str, "closed, open, half_open or cooling"]
    opened_by: str | None
    consecutive_failures: int
    last_error: Annotated[str | None, "for admin keys"]
    retry_after_s: Annotated[Seconds | None, "until the next trial"]
    last_60_s: LastMinute


class EngineHealth(TypedDict):
    """One engine and its targets."""

    status: Standing
    type: str
    is_resident: bool
    needs_operator: Annotated[bool, "it refuses the configured key, or wants credit"]
    consecutive_failures: int
    last_error: Annotated[str | None, "for admin keys"]
    last_check_unix: float | None
    last_check: Annotated[str | None, "what the last probe saw; for admin keys"]
    unhealthy_until_unix: float | None
    probes: CircuitStatus
    models: dict[str, CircuitStatus]
    more_models: Annotated[int, "undeclared ones that are not shown"]


class HealthShown(TypedDict):
    """The health of all engines."""

    status: Annotated[str, "the worst that matters: healthy, degraded or unhealthy"]
    providers: dict[str, EngineHealth]


# By route, in the order in which the reference tells them.
ANSWERS: Mapping[str, Any] = {
    "GET /health": Alive,
    "GET /status": Status,
    "GET /v1/health": HealthShown,
    "GET /v1/aliases": names.Aliases,
    "GET /models/available": names.AvailableModels,
    "GET /models/status": names.SwitchingStatus,
    "POST /admin/swap": Swapped,
    "POST /models/switch": Swapped,
    "POST /admin/unload": Unloading,
    "POST /admin/reset": Reset,
    "POST /admin/hold": Held,
    "POST /admin/release": Released,
    "POST /admin/reload": Reloaded,
    "POST /admin/discover": DiscoveredModels,
    "POST /admin/explain": Explained,
}
