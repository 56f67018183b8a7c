"""What an earlier router left running: which of it is still ours, and fit to go on.

Every launch leaves a record in the state file (`launches`, by slot), and a marker in the environment of all its
processes. A record is trusted only as far as reality agrees: same boot, same start time, still alive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from enginerouter.engines.launch import Launch, parse_marker
from enginerouter.engines.probe import ReadyRule
from enginerouter.engines.proctree import MARKER, ProcessKey, Snapshot
from enginerouter.slots import SlotId

SECTION = "launches"
# Beside a record: its process was put to sleep.
ASLEEP = "asleep"


@dataclass(frozen=True, slots=True)
class RecordedEnding:
    """How this launch is ended, whatever is configured by then. `cwd` is where its stop command runs."""

    stop_argv: tuple[str, ...]
    cwd: str | None
    host: str
    log_path: str
    is_container: bool


@dataclass(frozen=True, slots=True)
class LaunchRecord:
    """`digest` stands for command, environment and folder, which may hold secrets.

    `ending` is None in a record of a router that noted none.
    """

    pid: int
    started: int
    boot_id: str
    digest: str
    port: int
    log_offset: int
    marker: str
    ending: RecordedEnding | None = None

    @property
    def leader(self) -> ProcessKey:
        return ProcessKey(self.pid, self.started)

    @property
    def is_container(self) -> bool:
        return self.ending is not None and self.ending.is_container

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def record_of(launch: Launch, leader: ProcessKey, boot_id: str, log_offset: int, marker: str) -> LaunchRecord:
    return LaunchRecord(
        pid=leader.pid,
        started=leader.started,
        boot_id=boot_id,
        digest=launch.digest,
        port=launch.port,
        log_offset=log_offset,
        marker=marker,
        ending=RecordedEnding(
            stop_argv=launch.stop_argv,
            cwd=str(launch.cwd) if launch.cwd is not None else None,
            host=launch.host,
            log_path=str(launch.log_path),
            is_container=launch.is_container,
        ),
    )


def parse_record(raw: object) -> LaunchRecord | None:
    """None for anything but a whole record: a file may be damaged, or of another version."""
    if not isinstance(raw, Mapping):
        return None
    numbers = [raw.get(name) for name in ("pid", "started", "port", "log_offset")]
    texts = [raw.get(name) for name in ("boot_id", "digest", "marker")]
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
        return None
    if not all(isinstance(text, str) for text in texts) or not 0 < raw["port"] < 65536:
        return None
    ending = _parse_ending(raw.get("ending"))
    if ending is None and raw.get("ending") is not None:
        return None
    names = [name for name in LaunchRecord.__dataclass_fields__ if name != "ending"]
    return LaunchRecord(**{name: raw[name] for name in names}, ending=ending)


def _parse_ending(raw: object) -> RecordedEnding | None:
    if not isinstance(raw, Mapping) or not isinstance(raw.get("stop_argv"), list | tuple):
        return None
    cwd, is_container = raw.get("cwd"), raw.get("is_container")
    texts = [*raw["stop_argv"], raw.get("host"), raw.get("log_path"), "" if cwd is None else cwd]
    if not all(isinstance(text, str) for text in texts) or not isinstance(is_container, bool):
        return None
    return RecordedEnding(tuple(raw["stop_argv"]), cwd, raw["host"], raw["log_path"], is_container)


def launch_on_record(slot: SlotId, record: LaunchRecord, ending: RecordedEnding, env: Mapping[str, str]) -> Launch:
    """A launch that is configured no more, or otherwise by now: what is needed to end it. `env`: what it was given."""
    return Launch(
        slot=slot,
        argv=(),
        env={name: value for name, value in env.items() if name != MARKER},
        cwd=Path(ending.cwd) if ending.cwd is not None else None,
        stop_argv=ending.stop_argv,
        address="",
        host=ending.host,
        port=record.port,
        log_path=Path(ending.log_path),
        ready=ReadyRule("", 0, "", 0.0),
        is_container=ending.is_container,
        digest=record.digest,
    )


def slot_of(slot_text: str) -> SlotId:
    engine, _, model = slot_text.partition("/")
    return SlotId(engine, model or None)


def is_same_process(record: LaunchRecord, boot_id: str, processes: Snapshot) -> bool:
    """Is the leader of this launch alive, and not merely somebody with its pid?"""
    info = processes.get(record.pid)
    return record.boot_id == boot_id and info is not None and info.key == record.leader and info.is_alive


def leftover_markers(processes: Snapshot, router_id: str) -> dict[str, str]:
    """Marker → slot, for every launch of this router that has a living process."""
    found = {}
    for info in processes.values():
        marker = parse_marker(info.marker) if info.is_alive else None
        if marker is not None and marker.router_id == router_id:
            found[info.marker] = marker.slot
    return found


def engine_of(slot_text: str) -> str:
    """Engine names hold no slash; see `SlotId.__str__`."""
    return slot_text.partition("/")[0]
