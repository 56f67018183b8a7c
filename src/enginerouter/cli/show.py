"""What `routerctl` prints: the router's JSON answers as text for people. Plain functions, dicts in, lines out.

Names come from configurations and engines: control characters in them are shown, not obeyed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from enginerouter.errors import printable

GIB = 1024**3
# What a phase looks like at the beginning of a line.
SIGNS = {"ready": "●", "starting": "◐", "draining": "◌", "freeing": "◌", "settling": "◌", "crashed": "✗"}


def table(rows: Iterable[Sequence[object]], heads: Sequence[str]) -> list[str]:
    """Left-aligned columns; no line ends in blanks."""
    cells = [[printable(str(cell), 120) for cell in row] for row in rows]
    if not cells:
        return []
    widths = [max(len(line[i]) for line in (list(heads), *cells)) for i in range(len(heads))]
    return ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in (heads, *cells)]


def seconds(value: float | None) -> str:
    """`0.4s`, `12s`, `3m05s`, `2h10m`; nothing for None."""
    if value is None:
        return ""
    if value < 10:
        return f"{value:.1f}s"
    whole = round(value)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"


def clock(at: float | None) -> str:
    """A time of the day; of another day with its date. Now for None."""
    then, now = time.localtime(at), time.localtime()
    return time.strftime("%H:%M:%S" if then[:3] == now[:3] else "%m-%d %H:%M:%S", then)


def status(found: Mapping[str, Any]) -> list[str]:
    """`GET /status`."""
    lines = [f"enginerouter {found.get('version', '?')}, up {seconds(found.get('uptime_s'))}"]
    memory = found.get("memory") or {}
    if (available := memory.get("available_bytes")) is not None:
        lines.append(f"memory: {available / GIB:.1f} GiB available ({memory.get('source')})")
    elif memory:
        lines.append(f"memory: {memory.get('problem') or 'not read'} ({memory.get('source')})")
    lines += held(found)
    lines += [swap(s) for s in found.get("swaps") or ()]
    lines += ["", *table(map(_slot_row, found.get("slots") or ()), SLOT_HEADS)]
    said = set()
    for slot in found.get("slots") or ():
        if circuit := slot.get("start_circuit"):
            lines.append(_circuit(slot["slot"], circuit))
            said.add(circuit.get("reason"))
    if last := sorted((found.get("last_swaps") or {}).items(), key=lambda one: -(one[1].get("at") or 0)):
        lines += ["", *table((_last_swap_row(target, swapped) for target, swapped in last), LAST_SWAP_HEADS)]
        whys = [(target, swapped["error"]) for target, swapped in last if swapped.get("error")]
        lines += [f"swap to {printable(target)}: {printable(why, 300)}" for target, why in whys if why not in said]
    return lines


def held(found: Mapping[str, Any]) -> list[str]:
    """For whom memory is kept free, of `GET /status` or `POST /admin/hold`."""
    if not (hold := found.get("hold")):
        return []
    until = f", {seconds(hold['expires_in_s'])} left" if hold.get("expires_in_s") is not None else ""
    free = "free" if hold.get("is_free") else "being freed"
    return [f"hold: memory is {free} for {printable(str(hold.get('owner')))} ({hold.get('mode')}{until})"]


def released(found: Mapping[str, Any]) -> list[str]:
    """`POST /admin/release`."""
    return ["released: engines start again" if found.get("released") else "there was no such hold"]


SLOT_HEADS = ("", "SLOT", "PHASE", "SINCE", "IN FLIGHT", "QUEUED", "STARTS IN", "MODELS")


def _slot_row(slot: Mapping[str, Any]) -> Sequence[object]:
    phase = slot.get("phase", "")
    pin = " pinned" if slot.get("is_pinned") else ""
    eta = "" if phase == "ready" else seconds(slot.get("eta_s")) if (slot.get("learned") or {}).get("start_s") else "?"
    return (
        SIGNS.get(phase, "·"),
        slot.get("slot", ""),
        f"{phase}{pin}",
        seconds(slot.get("phase_s")),
        slot.get("in_flight") or "",
        slot.get("queued") or "",
        eta,
        ", ".join(slot.get("models") or ()),
    )


LAST_SWAP_HEADS = ("LAST SWAP TO", "AT", "RESULT", "TOOK", "SETTLED", "FREED")


def _last_swap_row(target: str, swapped: Mapping[str, Any]) -> Sequence[object]:
    return (
        target,
        clock(swapped.get("at")),
        swapped.get("result", ""),
        seconds(swapped.get("total_s")),
        swapped.get("settle") or "",
        ", ".join(swapped.get("freed") or ()),
    )


def _circuit(slot: str, circuit: Mapping[str, Any]) -> str:
    left = circuit.get("open_for_s")
    state = f"no start for {seconds(left)}" if left else "starts again at the next request"
    reason = f": {printable(circuit['reason'], 300)}" if circuit.get("reason") else ""
    count = circuit.get("failures")
    return f"{slot}: {count} failed start{'' if count == 1 else 's'}, {state}{reason}"


def swap(found: Mapping[str, Any]) -> str:
    """One swap that runs."""
    target = found.get("target") or "nothing"
    freed = f", freed {', '.join(found['freed'])}" if found.get("freed") else ""
    return printable(
        f"swap to {target}: {found.get('step')} for {seconds(found.get('step_s'))}, "
        f"{seconds(found.get('total_s'))} in all{freed}",
        300,
    )


def queue(found: Mapping[str, Any]) -> list[str]:
    """Who waits for what, of `GET /status`."""
    waiting = [s for s in found.get("slots") or () if s.get("queued")]
    rows = [
        (s["slot"], ", ".join(s.get("models") or ()), s["queued"], s.get("phase"), seconds(s.get("eta_s")), _keys(s))
        for s in waiting
    ]
    return table(rows, ("SLOT", "MODELS", "WAITING", "PHASE", "READY IN ABOUT", "WHO")) or ["nobody waits"]


def _keys(slot: Mapping[str, Any]) -> str:
    """Whose requests wait, and since when; only an admin key is told."""
    waiters = slot.get("waiting") or ()
    return ", ".join(f"{w.get('key')} ×{w.get('count')} for {seconds(w.get('longest_s'))}" for w in waiters)


def models(found: Mapping[str, Any], phases: Mapping[str, str]) -> list[str]:
    """`GET /v1/models`; `phases` by slot, of `/status`."""
    rows = []
    for model in found.get("data") or ():
        owner = model.get("owned_by", "")
        rows.append((model.get("id"), owner, phases.get(model.get("id")) or phases.get(owner, "")))
    return table(rows, ("MODEL", "ENGINE", "PHASE")) or ["no models"]


def phases_by_name(found: Mapping[str, Any]) -> dict[str, str]:
    """The phase of every model and engine that `/status` names."""
    phases: dict[str, str] = {}
    for slot in found.get("slots") or ():
        phases.setdefault(slot.get("engine", ""), slot.get("phase", ""))
        for model in slot.get("models") or ():
            phases[model] = slot.get("phase", "")
    return phases


RELOADED = {
    "added": "new",
    "removed": "gone, once idle",
    "removed_profiles": "gone, once idle",
    "changed": "restart at their next need",
    "changed_profiles": "restart at their next need",
    "moved": "asked elsewhere",
    "live": "keys that count at once",
}


def reload(found: Mapping[str, Any]) -> list[str]:
    """What a reload has changed, a line for each kind of change."""
    changes = found.get("changes") or {}
    told = [
        (what, ["/".join(n) if isinstance(n, list) else str(n) for n in changes[key]])
        for key, what in RELOADED.items()
        if changes.get(key)
    ]
    if waits := found.get("needs_restart"):
        told.append(("count when the router is started again", list(map(str, waits))))
    lines = [f"{what}: {printable(', '.join(names), 500)}" for what, names in told] or ["nothing has changed"]
    return lines + [f"warning: {printable(str(w.get('text')), 500)}" for w in found.get("warnings") or ()]


def plain(found: Any, depth: int = 0) -> list[str]:
    """Any answer: one line per value, indented like YAML."""
    pad = "  " * depth
    if isinstance(found, Mapping):
        lines = []
        for key, value in found.items():
            if isinstance(value, Mapping | list) and value:
                lines += [f"{pad}{printable(str(key))}:", *plain(value, depth + 1)]
            else:
                lines.append(f"{pad}{printable(str(key))}: {_scalar(value)}")
        return lines
    if isinstance(found, list):
        lines = []
        for value in found:
            first, *rest = plain(value, depth + 1) or [f"{pad}  "]
            lines += [f"{pad}- {first.strip()}", *rest]
        return lines
    return [f"{pad}{_scalar(found)}"]


def _scalar(value: Any) -> str:
    if value is None or value in ({}, []):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(str(value), 500)


def event(name: str, data: Mapping[str, Any]) -> str | None:
    """One event of `/events` as a line, or None for those that `watch` shows otherwise."""
    if name == "phase":
        reason = f" ({data['reason']})" if data.get("reason") else ""
        return printable(f"{data.get('slot')}: {data.get('before')} → {data.get('after')}{reason}", 300)
    if name == "swap":
        steps = ", ".join(f"{k} {seconds(v)}" for k, v in (data.get("seconds") or {}).items())
        settle = f", settle {data['settle']}" if data.get("settle") else ""
        total = seconds(data.get("total_s"))
        what = f"swap to {data.get('target')}"
        if data.get("target") == "none":
            what = f"unload of {', '.join(data.get('freed') or ()) or 'what was in memory'}"
        why = f": {data['error']}" if data.get("error") else ""
        return printable(f"{what}: {data.get('result')} in {total} ({steps}{settle}){why}", 600)
    if name == "request":
        first = f", first byte {data['first_byte_ms']} ms" if data.get("first_byte_ms") is not None else ""
        speed = f", {data['tok_s']} tok/s" if data.get("tok_s") else ""
        waited = f", queued {data['queue_ms']} ms" if data.get("queue_ms") else ""
        said = f" ({data['error']})" if data.get("error") else ""
        return printable(
            f"{data.get('model') or '-'} → {data.get('target') or '-'} {data.get('dialect')} {data.get('status')}"
            f"{waited}{first}, {data.get('total_ms')} ms{speed}{said}",
            400,
        )
    return None
