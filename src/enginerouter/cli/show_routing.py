"""What `routerctl` prints of routing: aliases, health, explain, reset, discover, unload. Dicts in, lines out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enginerouter.cli.show import seconds, table
from enginerouter.errors import printable


def aliases(found: Mapping[str, Any]) -> list[str]:
    """`GET /v1/aliases`: each alias with its targets in their order."""
    rows = []
    for alias in found.get("data") or ():
        notes = [word for word in ("local_only", "hidden") if alias.get(word)]
        if alias.get("description"):
            notes.append(str(alias["description"]))
        if unknown := alias.get("unknown"):
            notes.insert(0, f"not known now: {', '.join(map(str, unknown))}")
        targets = " → ".join(str(t.get("target")) for t in alias.get("targets") or ()) or "nothing that is known"
        rows.append((alias.get("id"), alias.get("kind"), targets, ", ".join(notes)))
    return table(rows, ("ALIAS", "KIND", "TARGETS", "NOTES")) or ["no aliases"]


def health(found: Mapping[str, Any]) -> list[str]:
    """`GET /v1/health`: each engine, and those of its models of which there is something to tell."""
    rows: list[tuple[Any, ...]] = []
    for name, engine in (found.get("providers") or {}).items():
        said = (engine.get("probes") or {}).get("last_error") or engine.get("last_check") or ""
        rows.append((name, _standing(engine), "", "", said))
        for model, circuit in (engine.get("models") or {}).items():
            ok, failed = ((circuit.get("last_60_s") or {}).get(word, 0) for word in ("ok", "failed"))
            if circuit.get("circuit") != "closed" or circuit.get("consecutive_failures") or ok or failed:
                tried = f"{ok} ok, {failed} failed" if ok or failed else ""
                left = circuit.get("retry_after_s")
                why = circuit.get("last_error") or ""
                rows.append((f"{name}/{model}", circuit.get("circuit"), tried, seconds(left) if left else "", why))
        if more := engine.get("more_models"):
            rows.append((f"{name}: {more} more", "", "", "", ""))
    return [str(found.get("status")), "", *table(rows, ("TARGET", "STATE", "LAST 60 S", "TRIED IN", "SAID"))]


def _standing(engine: Mapping[str, Any]) -> str:
    return (
        f"{engine.get('status')}, key or credit refused" if engine.get("needs_operator") else str(engine.get("status"))
    )


def explain(found: Mapping[str, Any]) -> list[str]:
    """`POST /admin/explain`: who would serve it, and target by target what stands in between."""
    asked, by = printable(str(found.get("asked"))), found.get("served_by")
    lines = [f"{asked} would be served by {printable(str(by))}" if by else f"{asked} would be served by nobody now"]
    rows = [
        (
            target.get("target") or "(not for this key)",
            target.get("phase", ""),
            seconds(target.get("eta_s")),
            ", ".join(target.get("evicts") or ()),
            _in_the_way(target),
            ", ".join(_change(c) for c in target.get("changes") or ()),
        )
        for target in found.get("targets") or ()
    ]
    lines += ["", *table(rows, ("TARGET", "PHASE", "READY IN", "EVICTS", "IN THE WAY", "CHANGES"))]
    if unknown := found.get("unknown"):
        lines.append(f"not known now: {printable(', '.join(map(str, unknown)))}")
    return lines


def _in_the_way(target: Mapping[str, Any]) -> str:
    refused = target.get("refused") or {}
    if said := target.get("passed_over") or refused.get("message"):
        return str(said)
    return f"{target['queued']} waiting" if target.get("queued") else ""


def _change(change: Mapping[str, Any]) -> str:
    value = f"={change['value']}" if "value" in change else ""
    return f"{change.get('step')} {change.get('path')}{value}"


def reset(found: Mapping[str, Any]) -> list[str]:
    """`POST /admin/reset`."""
    closed, slots = found.get("circuits") or (), found.get("reset") or ()
    lines = [f"tried again at once: {printable(', '.join(map(str, slots)), 500)}"] if slots else []
    what = f"closed: {printable(', '.join(map(str, closed)), 500)}" if closed else "no health circuit was open"
    return [*lines, what]


def unload(found: Mapping[str, Any]) -> list[str]:
    """`POST /admin/unload`."""
    leaving = found.get("unloading") or ()
    return [f"unloading {printable(str(slot))}" for slot in leaving] or ["nothing of it is in memory"]


def discover(found: Mapping[str, Any]) -> list[str]:
    """`POST /admin/discover`: the models of each engine that was asked, or why it could not say."""
    failed = found.get("failed") or {}
    rows = [(name, len(ids), failed.get(name) or ", ".join(ids)) for name, ids in (found.get("engines") or {}).items()]
    lines = table(rows, ("ENGINE", "COUNT", "MODELS")) or ["no engine is asked for its models (discover_models)"]
    for found_twice in found.get("collisions") or ():
        names = printable(", ".join(found_twice.get("models") or ()), 300)
        lines.append(f"{found_twice.get('served_by')} serves what {found_twice.get('also_at')} has, too: {names}")
    return lines
