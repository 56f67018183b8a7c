"""What a background probe asks of an engine that should be serving, and what its answer means. Pure.

It must not count as activity: a GET that no server loads or wakes a model for. An answer below 500 is a sign of life,
also 401 or 404: whether requests are served is for requests to say.
"""

from __future__ import annotations

from enginerouter.addresses import joined
from enginerouter.config.engines import ApiSwap, EngineSettings, Ollama
from enginerouter.engines.probe import Prober, Reply


def is_always_on(settings: EngineSettings) -> bool:
    """Whether it should answer whether or not anything of it is resident: others' servers, and what takes no memory.

    A remote engine without its key is none: it is not ours to ask.
    """
    if settings.type == "remote":
        return not settings.unconfigured
    return isinstance(settings, ApiSwap | Ollama) and not settings.holds_memory


def probe_url(settings: EngineSettings, address: str) -> str:
    """`address` is where requests go now, without a slash at its end."""
    if settings.type == "remote":
        return joined(address, "/v1/models")
    path = settings.ready_path
    if isinstance(settings, ApiSwap | Ollama):
        path = settings.health_path
    return address + (path or "/")


def prober_of(settings: EngineSettings) -> Prober:
    """A provider may want its headers with every call; other engines get those of the router's own calls."""
    headers = dict(settings.headers) if settings.type == "remote" else {}
    return Prober(headers | dict(settings.control_headers), settings.api_key)


def is_alive(settings: EngineSettings, reply: Reply, *, is_resident: bool) -> bool:
    """A server that has nothing loaded may say 503 of itself (TabbyAPI), and is as well as it can be."""
    if not is_resident and settings.type != "remote":
        return reply.status > 0
    return 0 < reply.status < 500 or reply.status == settings.ready_status
