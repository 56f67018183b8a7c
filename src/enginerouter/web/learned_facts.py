"""What engines said of their models when they had just become ready, kept in the state file: most of all the context.

It holds as long as a slot is launched in the same way; what another command line had said is forgotten.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from enginerouter.config.engines import EngineSettings
from enginerouter.engines.base import Engine
from enginerouter.engines.describe import describe
from enginerouter.engines.model_facts import CAPABILITIES, MOST_TOKENS, NOTHING, ModelFacts
from enginerouter.engines.probe import Prober
from enginerouter.engines.process import GenericProcessEngine
from enginerouter.engines.systemd_unit import SystemdUnitEngine
from enginerouter.slots import SlotId
from enginerouter.state import StateFile

SECTION = "models"


class LearnedFacts:
    """`ask` when a slot has become ready; `of` whenever somebody wants to know. `launch` digests how it is launched."""

    def __init__(self, state: StateFile) -> None:
        self._state = state
        self._known = {name: entry for name, entry in state.get(SECTION).items() if isinstance(entry, dict)}

    def of(self, slot: SlotId, launch: str) -> ModelFacts | None:
        entry = self._known.get(str(slot))
        return _read(entry) if entry is not None and entry.get("launch") == launch else None

    async def ask(self, engine: Engine, settings: EngineSettings, slot: SlotId, launch: str, model: str | None) -> None:
        """Ask a ready slot what it serves under the name `model`. Never raises but when cancelled."""
        if not isinstance(engine, GenericProcessEngine | SystemdUnitEngine):
            return  # servers of others say it in their lists
        prober = Prober(settings.control_headers, settings.api_key)
        try:
            facts = await describe(prober, engine.address(slot), model)
        finally:
            await prober.close()
        if facts != NOTHING:
            self._known[str(slot)] = {"launch": launch, **_written(facts)}
            self._state.put(SECTION, self._known)

    def keep_only(self, slots: Collection[SlotId]) -> None:
        """Forget slots that the configuration has no more."""
        names = {str(slot) for slot in slots}
        self._known = {name: entry for name, entry in self._known.items() if name in names}


def _written(facts: ModelFacts) -> dict[str, Any]:
    said: dict[str, Any] = {"context_length": facts.context_length, "also": sorted(facts.also)}
    if facts.capabilities is not None:
        said["capabilities"] = sorted(facts.capabilities)
    if facts.is_llamacpp:
        said["is_llamacpp"] = True
    return said


def _read(entry: Mapping[str, Any]) -> ModelFacts:
    """What does not look right is forgotten, not trusted."""
    length = entry.get("context_length")
    is_sound = isinstance(length, int) and not isinstance(length, bool) and 0 < length <= MOST_TOKENS
    said = entry.get("capabilities")
    return ModelFacts(
        context_length=length if is_sound else None,
        capabilities=_words(said) if isinstance(said, list) else None,
        also=_words(entry.get("also")),
        is_llamacpp=True if entry.get("is_llamacpp") is True else None,
    )


def _words(said: Any) -> frozenset[str]:
    return frozenset(word for word in CAPABILITIES if word in said) if isinstance(said, list) else frozenset()
