"""Which processes are in a control group: how systemd knows those of a unit, however they forked.

A path is as systemd says it (`ControlGroup=`), below the root of its hierarchy. Functions here block.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_PROC = Path("/proc")


def is_within(membership: str, control_group: str) -> bool:
    """Whether a text of /proc/PID/cgroup names this group or one below it, in a hierarchy that systemd keeps."""
    wanted = control_group.rstrip("/")
    if not wanted:
        return False
    for line in membership.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers in ("", "name=systemd") and (path == wanted or path.startswith(f"{wanted}/")):
            return True
    return False


def members(control_group: str, pids: Iterable[int]) -> set[int]:
    """Those of these processes that are in the group, or in one below it."""
    if not control_group.rstrip("/"):
        return set()
    return {pid for pid in pids if is_within(_membership(pid), control_group)}


def _membership(pid: int) -> str:
    try:
        return (_PROC / str(pid) / "cgroup").read_text()
    except OSError:
        return ""
