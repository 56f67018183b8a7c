"""What all requests share: the coordinator, the engines' connections, what is counted and what is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from enginerouter.proxy.downstream import KeepAlive
from enginerouter.proxy.headers import VIA
from enginerouter.proxy.upstream import Upstream
from enginerouter.routing import walk
from enginerouter.routing.health import Health
from enginerouter.routing.target import Target
from enginerouter.routing.walk import CoolDowns
from enginerouter.slots import SlotId
from enginerouter.swap.coordinator import Coordinator
from enginerouter.tasks import TaskGroup
from enginerouter.web.answers import KeptAnswers
from enginerouter.web.edge import EdgeCall
from enginerouter.web.naming import Naming
from enginerouter.web.params import ModelParams
from enginerouter.web.responses import ResponseOwners
from enginerouter.web.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all exchanges share. `addresses` gives the URL that a ready slot answers at.

    `instance` is this router's id among others, for `X-EngineRouter-Via`. `has_infill`: a target's engine has said that
    it is a llama.cpp.
    """

    instance: str
    coordinator: Coordinator
    naming: Naming
    health: Health
    cool_downs: CoolDowns
    upstreams: Mapping[str, Upstream]
    addresses: Mapping[SlotId, str]
    keepalive: KeepAlive
    telemetry: Telemetry
    owners: ResponseOwners
    params: ModelParams
    answers: KeptAnswers
    has_infill: Callable[[Target], bool]
    tasks: TaskGroup

    def via(self, call: EdgeCall) -> str:
        """The routers that a request of this call has come through when it leaves here."""
        before = walk.instances(call.request.headers.get(VIA, ""))
        return ", ".join((*before, self.instance))
