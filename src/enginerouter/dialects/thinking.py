"""The thinking guard: a chat that allows few tokens would spend them all on thinking, and answer nothing.

Pure. `guard` looks at the body as it goes upstream, in the dialect of its path, and says what must be written into it.
A request that chose for itself, either way, is left alone. `null` chooses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

Form = Literal["template", "effort", "ollama"]
Writes = tuple[tuple[str, Any], ...]

# Where each chat dialect says how many tokens an answer may have; the first that counts does.
LIMITS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "/v1/chat/completions": ("max_completion_tokens", "max_tokens"),
        "/v1/messages": ("max_tokens",),
        "/api/chat": ("options.num_predict", "num_predict"),
        "/api/generate": ("options.num_predict", "num_predict"),
    }
)

# Whoever names one of these has chosen.
CHOICES = ("enable_thinking", "think", "thinking", "reasoning_effort", "reasoning", "output_config.effort")
TEMPLATE_CHOICES = ("enable_thinking", "thinking", "reasoning_effort")

# How "do not think" is said to engines of each kind, by path.
#   template  llama.cpp, vLLM, SGLang, mlx-lm, TabbyAPI: a variable of the chat template. Their /v1/messages knows
#             Anthropic's own word or passes the variable on, so it gets both.
#   effort    providers, which refuse unknown keys: OpenAI's own word
#   ollama    its own API has a key for it, its /v1 reads the effort
_TEMPLATE: Writes = (("chat_template_kwargs.enable_thinking", False),)
_EFFORT: Writes = (("reasoning_effort", "none"),)
_THINK: Writes = (("think", False),)
_DISABLED: Writes = (("thinking", {"type": "disabled"}),)
OFF: Mapping[tuple[str, Form], Writes] = MappingProxyType(
    {
        ("/v1/chat/completions", "template"): _TEMPLATE,
        ("/v1/chat/completions", "effort"): _EFFORT,
        ("/v1/chat/completions", "ollama"): _EFFORT,
        ("/v1/messages", "template"): (*_DISABLED, *_TEMPLATE),
        ("/v1/messages", "effort"): _DISABLED,
        ("/v1/messages", "ollama"): _DISABLED,
        ("/api/chat", "template"): _THINK,
        ("/api/chat", "effort"): _THINK,
        ("/api/chat", "ollama"): _THINK,
        ("/api/generate", "template"): _THINK,
        ("/api/generate", "effort"): _THINK,
        ("/api/generate", "ollama"): _THINK,
    }
)


def form_of(engine_type: str) -> Form:
    """How an engine of this type is told not to think."""
    if engine_type == "remote":
        return "effort"
    return "ollama" if engine_type == "ollama" else "template"


def guard(path: str, body: Mapping[str, Any], below: int, form: Form) -> Writes:
    """What to write into a body that allows fewer than `below` tokens: (dotted path, value), often nothing."""
    limits = LIMITS.get(path)
    if limits is None or has_chosen(body):
        return ()
    allowed = next((found for name in limits if (found := _limit(at(body, name))) is not None), None)
    return OFF[path, form] if allowed is not None and allowed < below else ()


def has_chosen(body: Mapping[str, Any]) -> bool:
    """Whether the request says itself if there is to be thinking."""
    if any(at(body, name) is not None for name in CHOICES):
        return True
    variables = body.get("chat_template_kwargs")
    if variables is None:
        return False
    # What is no object is the client's mistake, for the engine to name.
    return not isinstance(variables, dict) or any(variables.get(name) is not None for name in TEMPLATE_CHOICES)


def _limit(value: Any) -> float | None:
    """A number of tokens. 0 and less mean "no limit" to some engines and nothing to others; they do not count."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and value > 0 else None


def at(body: Mapping[str, Any], dotted: str) -> Any:
    """The value at a dotted path, or None."""
    found: Any = body
    for step in dotted.split("."):
        if not isinstance(found, dict):
            return None
        found = found.get(step)
    return found
