"""Golden transcripts: files that show what a client sends and gets, and what an engine gets and says.

A transcript holds `client`, `path`, `engine` (the dialects it speaks; `infill`: it is a llama.cpp) and `request`; then
what is `sent` to the engine, or status and words of a `refused` one; then either `answer` and what is `shown` of it, or
`stream` and the `events` it becomes, with `failure` where it is not whole. Streams are lists of what their events hold,
one every eighth of a second, of which the first comes a second after the request; half a second of that was loading. A
string stands for itself (`[DONE]`, a comment).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from enginerouter.dialects.base import Times
from enginerouter.dialects.translation import ANTHROPIC, DIALECTS, Stream, Translation, plan

GOLDEN = Path(__file__).parent / "golden"
BEGAN_AT = 1000.0
TIMES = Times(began_at=BEGAN_AT, began_utc=1767225600.0, load_s=0.5)
BY_NAME = {d.name: d for d in DIALECTS}


def transcripts() -> dict[str, dict[str, Any]]:
    """All of them by `file: case`."""
    return {
        f"{file.stem}: {one['case']}": one
        for file in sorted(GOLDEN.glob("*.json"))
        for one in json.loads(file.read_text(encoding="utf-8"))
    }


def planned(one: dict[str, Any]) -> Translation | None:
    client, is_strict = BY_NAME[one["client"]], one.get("strict", False)
    has_infill = one.get("infill", False)
    return plan(
        client, one["path"], one["request"], one["engine"], answer_id="a1", is_strict=is_strict, has_infill=has_infill
    )


def frame(dialect: str, said: Any) -> bytes:
    """One event of an engine's stream, as its bytes."""
    if isinstance(said, str):
        return f"{said}\n\n".encode() if said.startswith(":") else f"data: {said}\n\n".encode()
    text = json.dumps(said, ensure_ascii=False)
    if dialect == "ollama":
        return f"{text}\n".encode("utf-8", "surrogatepass")
    name = f"event: {said['type']}\n" if dialect == "anthropic" else ""
    return f"{name}data: {text}\n\n".encode("utf-8", "surrogatepass")


def events(dialect: str, raw: bytes) -> list[Any]:
    """What the events of a client's stream hold. Fails on anything but the exact framing of its dialect."""
    if dialect == "ollama":
        assert raw == b"" or raw.endswith(b"\n")
        return [json.loads(line) for line in raw.decode().split("\n")[:-1]]
    assert raw == b"" or raw.endswith(b"\n\n")
    found: list[Any] = []
    for event in raw.decode().split("\n\n")[:-1]:
        name, data = "", event
        if dialect == ANTHROPIC.name:
            name, data = event.split("\n")
        assert data.startswith("data: ")
        said = data.removeprefix("data: ")
        found.append(said if said == "[DONE]" else json.loads(said))
        if name:
            assert name == f"event: {found[-1]['type']}"
    return found


def played(one: dict[str, Any], translation: Translation) -> tuple[list[Any], Stream]:
    """The stream of a transcript, fed event by event."""
    stream, now, raw = translation.stream(TIMES), BEGAN_AT + 1.0, b""
    for said in one["stream"]:
        raw += stream.feed(frame(translation.engine_dialect, said), now)
        now += 0.125
    raw += stream.end(now)
    return events(one["client"], raw), stream
