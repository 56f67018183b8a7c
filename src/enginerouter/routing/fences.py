"""Which engines are other machines', for keys that may not spend there. Pure: the machine's own addresses come in."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from enginerouter.config.check_engines import is_cloud_name, is_surely_remote
from enginerouter.config.engines import ApiSwap, EngineSettings, GenericProcess, Ollama
from enginerouter.config.forms import is_loopback
from enginerouter.errors import Problem

# What containers call the machine that they run on.
_NAMES_OF_THE_HOST = frozenset({"host.docker.internal", "gateway.docker.internal", "host.containers.internal"})
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def is_remote(settings: EngineSettings, own: Collection[Network]) -> bool:
    """Whether what is sent to an engine leaves this machine. `own`: its addresses, and the networks of its bridges."""
    if settings.type == "remote" or is_surely_remote(settings):
        return True
    if settings.trust_local or isinstance(settings, GenericProcess) or settings.base_url is None:
        return False
    host = (urlsplit(settings.base_url).hostname or "").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
        address = getattr(address, "ipv4_mapped", None) or address
    except ValueError:
        return False  # as far as its name tells; `may_leave` doubts it
    is_here = address.is_loopback or address.is_unspecified or any(address in network for network in own)
    return not is_here


def may_leave(settings: EngineSettings, own: Collection[Network], names: Collection[str]) -> bool:
    """Whether a fence keeps an engine out: also where a name may be anybody's, in doubt. `names`: this machine's own.

    Which address a name has now says nothing of the next request.
    """
    if is_remote(settings, own):
        return True
    if settings.trust_local or isinstance(settings, GenericProcess) or settings.base_url is None:
        return False
    host = (urlsplit(settings.base_url).hostname or "").lower()
    return not (is_loopback(host) or host in names or host in _NAMES_OF_THE_HOST or _is_address(host))


def fences_out(
    settings: EngineSettings, own: Collection[Network], names: Collection[str], *, must_stay: bool
) -> Problem | None:
    """A warning, where there are fences: an engine that they keep out in doubt.

    `must_stay`: something that is `local_only` leads to it. Then also where it surely is another machine.
    """
    is_far = is_remote(settings, own)
    if not settings.enabled or not may_leave(settings, own, names) or (is_far and not must_stay):
        return None
    host = urlsplit(settings.base_url or "").hostname
    what = f"{host} {'is' if is_far else 'may be'} another machine"
    return Problem(
        f"{what}, so what must stay on this one (`local_only`, `remote: false`) passes it over",
        path=f"engines.{settings.name}.base_url",
        hint="set `trust_local: true` if it is this machine, or a container on it",
    )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def takes_memory_elsewhere(settings: EngineSettings, own: Collection[Network]) -> Problem | None:
    """A warning, for a server on another machine that swaps with the engines of this one as if it were here."""
    if not isinstance(settings, ApiSwap | Ollama) or not settings.enabled or not settings.holds_memory:
        return None
    if not is_remote(settings, own):
        return None
    host = urlsplit(settings.base_url or "").hostname
    return Problem(
        f"{host} is not this machine, but the engine evicts those that are here, as if it needed their memory",
        path=f"engines.{settings.name}.base_url",
        hint="set `holds_memory: false`, or `trust_local: true` if it is this machine after all",
    )


def is_cloud_model(engine: EngineSettings, model: str, said_remote: Collection[str]) -> bool:
    """Whether an Ollama daemon passes requests for a model on to another machine."""
    return is_cloud_name(engine, model) or (engine.type == "ollama" and model in said_remote)


def own_networks(addresses: Collection[tuple[str, str, str | None]]) -> list[Network]:
    """From (interface, address, netmask): each address alone, and the whole network of a bridge of containers."""
    found: list[Network] = []
    for interface, address, netmask in addresses:
        try:
            one = ipaddress.ip_address(address.partition("%")[0])
            is_bridge = interface.startswith(("docker", "br-", "virbr", "podman", "cni", "lxdbr"))
            prefix = netmask if is_bridge and netmask and one.version == 4 else str(one.max_prefixlen)
            found.append(ipaddress.ip_network(f"{one}/{prefix}", strict=False))
        except ValueError:
            continue  # not an address of IP
    return found
