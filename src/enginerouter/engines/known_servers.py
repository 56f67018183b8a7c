"""Servers that are known by where they load a model, and what is theirs alone in what they answer.

A stranger that says `[]`, `{}` or `ok` to everything must not pass for a server with nothing loaded: an engine would be
evicted for it, and its client would wait for a load that nobody has begun. Plain functions.
"""

from __future__ import annotations

from dataclasses import dataclass

from enginerouter.config.engines import ApiSwap
from enginerouter.engines.http_control import ControlFailed, Said, printable_start


@dataclass(frozen=True, slots=True)
class KnownServer:
    """What is loaded they all list in an object. `load_is_object`: so is the answer to a load, or each event of it."""

    name: str
    load_path: str
    load_is_object: bool = True


_KNOWN = (
    KnownServer("LM Studio", "/api/v1/models/load"),
    KnownServer("text-generation-webui", "/v1/internal/model/load", load_is_object=False),  # "OK"
    KnownServer("TabbyAPI", "/v1/model/load"),
    KnownServer("LocalAI", "/backend/load"),
    KnownServer("Lemonade", "/api/v1/load"),
    KnownServer("llama-server", "/models/load"),
)


def known_server(settings: ApiSwap) -> KnownServer | None:
    """The path may lie below a prefix of a proxy; of the table the first that fits counts."""
    path = settings.load_path.partition("?")[0].rstrip("/")
    return next((server for server in _KNOWN if path.endswith(server.load_path)), None)


def see_list_is_theirs(said: Said, settings: ApiSwap) -> None:
    """Raises ControlFailed for a list of what is loaded that this kind of server does not give."""
    server = known_server(settings)
    if server is not None and isinstance(said.document, list):
        raise _other(said, "what is loaded", server)


def see_load_is_theirs(said: Said, model: str, settings: ApiSwap) -> None:
    """Raises ControlFailed for an answer to `load_path` that this kind of server does not give."""
    server = known_server(settings)
    if server is None or not server.load_is_object:
        return
    if not any(isinstance(document, dict) for document in said.documents()):
        raise _other(said, f"to load {model!r}", server)


def says_nothing_of_itself(said: Said, settings: ApiSwap) -> bool:
    """Whether this list of what is loaded is an empty one that anybody may have given: `[]` for an object."""
    return said.document == [] and bool(settings.loaded_models_key)


def unrecognised(said: Said, model: str, settings: ApiSwap) -> ControlFailed:
    return ControlFailed(
        f"asked what is loaded, {said.url} answered {printable_start(said.body)}, which anybody may say – configured "
        f"is an object with {settings.loaded_models_key!r} – and nothing there lists {model!r} (for a server whose "
        'list is a bare one: `loaded_models_key: ""`)',
        is_mistaken=True,
    )


def _other(said: Said, what: str, server: KnownServer) -> ControlFailed:
    return ControlFailed(
        f"asked {what}, {said.url} answered {said.status} {printable_start(said.body)}, and {server.name}, which loads "
        f"at {server.load_path}, answers with an object",
        is_mistaken=True,
    )
