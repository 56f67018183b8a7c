"""What an earlier router left running: which of it is still ours, and fit to go on.

Every launch leaves a record in the state file (`launches`, by slot), and a marker in the environment of all its
processes. A record is trusted only as far as reality agrees: same boot, same start time, still alive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from enginerouter.engines.launch import parse_marker
from enginerouter.engines.proctree import ProcessKey, Snapshot

SECTION = "launches"
# Beside a record: its process was put to sleep.
ASLEEP = "asleep"


@dataclass(frozen=True, slots=True)
class LaunchRecord:
    """Holds no secret: `digest` stands for command, environment and folder."""

    pid: int
    started: int
    boot_id: str
    digest: str
    port: int
    log_offset: int
    marker: str

    @property
    def leader(self) -> ProcessKey:
        return ProcessKey(self.pid, self.started)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


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
    return LaunchRecord(**{name: raw[name] for name in LaunchRecord.__dataclass_fields__})


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
