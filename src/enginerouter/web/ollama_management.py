"""The part of Ollama's API that changes what it has on disk: for admin keys, and all but `pull` behind a switch.

A request goes to the daemon that owns the model, else to the first one. It needs no memory, so nothing is leased and
nothing is swapped; connections are its own, because those of requests are closed when a daemon's models are freed.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote, urlsplit

from aiohttp import web

from enginerouter.addresses import joined
from enginerouter.errors import BadRequest, Forbidden, NotBuilt, UnknownModel, printable
from enginerouter.proxy.upstream import Upstream
from enginerouter.routing.directory import respelt
from enginerouter.routing.target import Target
from enginerouter.web.edge import EdgeCall
from enginerouter.web.json_body import json_object
from enginerouter.web.keys import Identity
from enginerouter.web.naming import Naming, anything, nothing_resident
from enginerouter.web.passing import pass_on
from enginerouter.web.telemetry import Record, Recorded, Telemetry

log = logging.getLogger(__name__)

# Members of a body that name a model which is there, or will be; the first that somebody owns decides where to.
NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "/api/pull": ("model", "name"),
        "/api/push": ("model", "name"),
        "/api/delete": ("model", "name"),
        "/api/create": ("model", "name", "from"),
        "/api/copy": ("source", "destination"),
    }
)
_DESTRUCTIVE = ("push", "create", "copy", "delete", "blobs")
_DIGEST = re.compile(r"sha256[:-][0-9a-f]{64}")


class OllamaManagement:
    """The handlers. `addresses` gives each daemon's URL, in the order of the configuration.

    `forget` drops the answers that were kept of an engine.
    """

    def __init__(
        self,
        naming: Naming,
        telemetry: Telemetry,
        addresses: Mapping[str, str],
        upstreams: Mapping[str, Upstream],
        forget: Callable[[str], None],
        *,
        allows_destructive: bool,
    ) -> None:
        self._naming = naming
        self._telemetry = telemetry
        self._addresses = addresses
        self._upstreams = upstreams
        self._forget = forget
        self._allows_destructive = allows_destructive

    async def pull(self, call: EdgeCall) -> web.StreamResponse:
        """Fetch a model, at the daemon that has it, else the first."""
        return await self._managed(call)

    async def destructive(self, call: EdgeCall) -> web.StreamResponse:
        """Change what a daemon has on disk: only with `allow_destructive_ollama_api`, else 403."""
        self._refuse_unless_allowed(call)
        return await self._managed(call)

    async def blob(self, call: EdgeCall) -> web.StreamResponse:
        """A part of a model to be created: asked for by HEAD, sent by POST. It may be larger than any memory."""
        self._refuse_unless_allowed(call)
        if not _DIGEST.fullmatch(call.params["digest"]):
            raise BadRequest(f"{printable(call.params['digest'])!r} is no digest: 'sha256:' and 64 digits are needed")
        body = call.stream_body() if call.request.method == "POST" else b""
        engine = self._daemons(call.identity)[0]
        with self._recorded(call, engine) as record:
            response = await pass_on(call, self._upstreams[engine], self._addresses[engine], call.raw_path, body)
            record.status = response.status
            return response

    def _refuse_unless_allowed(self, call: EdgeCall) -> None:
        if not self._allows_destructive:
            raise switched_off(f"{call.request.method} {call.route.path}")

    async def _managed(self, call: EdgeCall) -> web.StreamResponse:
        body = await call.read_body()
        asked = await json_object(body.raw)
        names = {m: asked[m] for m in NAMES[call.raw_path] if asked.get(m) not in (None, "")}
        engine, changes = self._owner(names, call.identity)
        raw = json.dumps({**asked, **changes}).encode() if changes else body.raw
        with self._recorded(call, engine) as record:
            log.info("%s %s of %s at %s", call.request_id, call.raw_path, _said(names), engine)
            upstream, address = self._upstreams[engine], self._addresses[engine]
            try:
                response = await pass_on(
                    call,
                    upstream,
                    address,
                    call.raw_path,
                    raw,
                    noticed=lambda ended: self._noticed(engine, ended=ended),
                )
            except BaseException:
                # Also after a failure, or when the client left: something may have happened.
                self._noticed(engine, ended=True)
                raise
            record.status = response.status
            return response

    def _noticed(self, engine: str, *, ended: bool) -> None:
        """Something of a daemon's models has changed: what was heard of them is old, and at the end its answers too."""
        self._naming.outdate(engine)
        if ended:
            self._forget(engine)

    def _daemons(self, identity: Identity) -> list[str]:
        """The daemons that a key may hear of. Raises NotBuilt if there are none."""
        found = [name for name in self._addresses if self._naming.may_know_engine(name, identity)]
        if not found:
            raise NotBuilt("there is no Ollama engine here; models of other engines are files of their own")
        return found

    def _owner(self, names: Mapping[str, Any], identity: Identity) -> tuple[str, dict[str, str]]:
        """Which daemon, and what to call the models there. Raises BadRequest, Forbidden or NotBuilt."""
        daemons = self._daemons(identity)
        for member, name in names.items():
            if not isinstance(name, str) or not name.isprintable():
                raise BadRequest(f"'{member}' must be the name of a model")
            bare = name.partition("/")[2] if name.partition("/")[0] in daemons else name
            if not any(identity.may_name(n) for n in (name, bare, *(f"{d}/{bare}" for d in daemons))):
                raise Forbidden(f"this key may not name {printable(name)!r}")
        for member, name in names.items():
            if (found := self._owned(name, daemons)) is not None:
                engine, own_name = found
                return engine, {member: own_name} if own_name != name else {}
        return daemons[0], {}

    def _owned(self, name: str, daemons: list[str]) -> tuple[str, str] | None:
        """(daemon, the model's name there). An alias is no model: deleting one must not delete what it stands for."""
        engine, _, rest = name.partition("/")
        if engine in daemons and rest:
            return engine, rest
        try:
            route = self._naming.directory.route(name, anything, nothing_resident)
        except UnknownModel:
            route = None
        if isinstance(route, Target) and route.engine in daemons and route.asked == route.model_id:
            return route.engine, route.upstream_model
        spellings = {name, respelt(name)}
        return next(((d, name) for d in daemons if spellings & set(self._naming.directory.said_by(d))), None)

    def _recorded(self, call: EdgeCall, engine: str) -> Recorded:
        record = Record("ollama", call.request_id, call.received_at)
        record.asked = record.label = engine
        return Recorded(record, self._telemetry)


def is_destructive(base: str, path: str) -> bool:
    """Whether a raw path under the base URL of an engine is one of those behind the switch, however it is spelt there.

    Also where more comes before it: an Ollama may be behind a server that takes a prefix away.
    """
    raw = urlsplit(joined(base, path)).path
    while (decoded := unquote(raw, errors="replace")) != raw:  # more than one server may decode it
        raw = decoded
    segments: list[str] = []
    for segment in raw.replace("\\", "/").lower().split("/"):
        if segment.strip() == "..":
            del segments[-1:]
        elif segment.strip() not in ("", "."):
            segments.append(segment.strip())
    return any(first == "api" and then in _DESTRUCTIVE for first, then in pairwise(segments))


def switched_off(what: str) -> Forbidden:
    return Forbidden(
        f"{what} is switched off: set allow_destructive_ollama_api in the router's configuration, or ask the Ollama "
        "server itself"
    )


def _said(names: Mapping[str, Any]) -> str:
    return " to ".join(printable(str(name)) for name in names.values()) or "nothing"
