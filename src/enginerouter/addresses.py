"""How a request path is put under an engine's base URL."""

from __future__ import annotations

import re

_HOLDS_VERSION = re.compile(r"^[^/]*//[^/]*/(.*/)?(v\d[0-9a-z.]*|openai)$")


def stands_for_v1(base: str) -> bool:
    """Whether a base URL is that of the `/v1` of our paths: what a server has beside it, it does not lead to."""
    return _HOLDS_VERSION.search(base) is not None


def joined(base: str, path: str) -> str:
    """The URL of a request path; `base` has no slash at its end.

    A base whose path ends in a version or in `openai` already stands for the `/v1` of our paths: it gets the operation
    only (`https://openrouter.ai/api/v1` + `/v1/chat/completions` → `https://openrouter.ai/api/v1/chat/completions`).
    Any other base is taken literally, and the whole path follows.
    """
    if path.startswith("/v1/") and stands_for_v1(base):
        return base + path.removeprefix("/v1")
    return base + path
