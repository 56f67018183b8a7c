"""What is known of a model besides its name, whoever said it: one plain value, and how several are put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

# Ollama's words, in its order.
CAPABILITIES = ("completion", "tools", "insert", "vision", "embedding", "thinking")
# Of a model of which nobody says anything: chat, and tools, without which coding agents do not offer it at all.
ASSUMED = frozenset({"completion", "tools"})
MOST_TOKENS = 10**9


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """None or "" = not known. `capabilities` are all it has; `also` are some that it has for sure besides.

    Sizes are bytes, times seconds of UTC. `context_length` is what a request may fill, in tokens. `is_llamacpp`: who
    serves it has said so.
    """

    context_length: int | None = None
    capabilities: frozenset[str] | None = None
    also: frozenset[str] = frozenset()
    architecture: str = ""
    basename: str = ""
    parameter_count: int | None = None
    parameter_size: str = ""
    quantization: str = ""
    embedding_length: int | None = None
    format: str = ""
    size_bytes: int | None = None
    digest: str = ""
    modified_utc: float | None = None
    is_llamacpp: bool | None = None

    @property
    def all_capabilities(self) -> tuple[str, ...]:
        """In Ollama's order."""
        own = self.capabilities if self.capabilities is not None else ASSUMED
        return tuple(word for word in CAPABILITIES if word in own | self.also)


NOTHING = ModelFacts()


def known(*sources: ModelFacts | None) -> ModelFacts:
    """Of each field what the first source says that says anything; `also` of all of them."""
    found: dict[str, Any] = {}
    for source in (s for s in sources if s is not None):
        for field in fields(source):
            value = getattr(source, field.name)
            if field.name == "also":
                found["also"] = found.get("also", frozenset()) | value
            elif value not in (None, "") and field.name not in found:
                found[field.name] = value
    return ModelFacts(**found)


def common(sources: Sequence[ModelFacts]) -> ModelFacts:
    """What a chain of models can promise: the smallest context, and what all of them can do."""
    lengths = [s.context_length for s in sources if s.context_length is not None]
    shared = frozenset(CAPABILITIES).intersection(*(s.all_capabilities for s in sources)) if sources else ASSUMED
    return ModelFacts(context_length=min(lengths, default=None), capabilities=shared)


def template_capabilities(template: str) -> frozenset[str]:
    """What a chat template shows that its model was trained for."""
    found = {"completion"}
    if "tools" in template or "tool_call" in template:
        found.add("tools")
    if any(word in template for word in ("<think>", "enable_thinking", "reasoning_content", "reasoning_effort")):
        found.add("thinking")
    return frozenset(found)
