"""The table of phases. `python tests/swap/test_phases.py` writes its drawing into docs/design.md."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from enginerouter.swap.phases import NEXT, Event, Phase, mermaid, step

DESIGN = Path(__file__).parents[2] / "docs" / "design.md"
BETWEEN_MARKERS = re.compile(r"(<!-- phases:begin -->\n).*?(<!-- phases:end -->)", re.DOTALL)


def drawing() -> str:
    return f"```mermaid\n{mermaid()}```\n"


def paths(start: Phase, end: Phase) -> list[list[Phase]]:
    """All ways from start to end that pass no phase twice and do not go on from `end`."""
    found: list[list[Phase]] = []

    def walk(way: list[Phase]) -> None:
        for after in NEXT[way[-1]].values():
            if after is end:
                found.append([*way, after])
            elif after not in way:
                walk([*way, after])

    walk([start])
    return found


def test_every_phase_is_reachable():
    reached = {Phase.COLD}
    while more := {after for p in reached for after in NEXT[p].values()} - reached:
        reached |= more
    assert reached == set(Phase)


def test_every_phase_can_end():
    assert set(NEXT) == set(Phase)
    assert all(paths(phase, Phase.COLD) for phase in Phase)


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.READY, Phase.DRAINING, Phase.CRASHED, Phase.STUCK])
def test_every_way_back_to_cold_leads_through_freeing_and_then_settling(phase: Phase):
    for way in paths(phase, Phase.COLD):
        assert way[-3:] == [Phase.FREEING, Phase.SETTLING, Phase.COLD]


def test_only_starting_and_adoption_lead_to_service():
    to_ready = {(p, e) for p in Phase for e, after in NEXT[p].items() if after is Phase.READY}
    assert to_ready == {
        (Phase.STARTING, Event.READY),
        (Phase.COLD, Event.ADOPT),
        (Phase.DRAINING, Event.CALL_OFF),
    }


def test_there_is_no_way_back_from_the_first_stop_signal():
    assert set(NEXT[Phase.FREEING].values()) == {Phase.SETTLING, Phase.STUCK}


def test_what_the_table_does_not_have_is_an_error():
    known = {(p, e) for p in Phase for e in NEXT[p]}
    for phase, event in set(itertools.product(Phase, Event)) - known:
        with pytest.raises(RuntimeError, match="no transition"):
            step(phase, event)


def test_the_drawing_in_the_docs_is_the_table():
    found = BETWEEN_MARKERS.search(DESIGN.read_text())
    assert found is not None, "docs/design.md has no phases:begin/phases:end markers"
    assert drawing() in found.group(), "run `PYTHONPATH=src python tests/swap/test_phases.py`"


if __name__ == "__main__":
    text = DESIGN.read_text()
    DESIGN.write_text(BETWEEN_MARKERS.sub(lambda m: m[1] + drawing() + m[2], text))
