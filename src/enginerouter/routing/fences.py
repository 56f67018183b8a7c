"""Which engines are other machines', for keys that may not spend there. Pure: the machine's own addresses come in."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable
from urllib.parse import urlsplit

from enginerouter.config.check_engines import is_cloud_name, is_surely_remote
from enginerouter.config.engines import ApiSwap, EngineSettings, GenericProcess, Ollama
from enginerouter.config.forms import is_loopback
from enginerouter.config.model import Alias
from enginerouter.config.report import Report

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


def warn_of_doubt(settings: EngineSettings, own: Collection[Network], names: Collection[str], report: Report) -> None:
    """Where there are fences: of an engine that they keep out because its name may be anybody's."""
    if not settings.enabled or is_remote(settings, own) or not may_leave(settings, own, names):
        return
    report.warn(
        ("engines", settings.name, "base_url"),
        f"{_host(settings)} may be another machine, so what must stay on this one (`local_only`, `remote: false`) "
        "passes it over",
        "set `trust_local: true` if it is this machine, or a container on it",
    )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def warn_of_memory_elsewhere(settings: EngineSettings, own: Collection[Network], report: Report) -> None:
    """Of a server on another machine that swaps with the engines of this one as if it were here."""
    if not isinstance(settings, ApiSwap | Ollama) or not settings.enabled or not settings.holds_memory:
        return
    if not is_remote(settings, own):
        return
    report.warn(
        ("engines", settings.name, "base_url"),
        f"{_host(settings)} is not this machine, but the engine evicts those that are here, "
        "as if it needed their memory",
        "set `holds_memory: false`, or `trust_local: true` if it is this machine after all",
    )


def check_stays_here(alias: Alias, engines: Iterable[EngineSettings], own: Collection[Network], report: Report) -> None:
    """What is `local_only` must not lead to an engine of another machine."""
    for settings in engines if alias.local_only else ():
        if is_remote(settings, own):
            report.error(
                ("aliases", alias.name, "local_only"),
                f"leads to engine {settings.name!r}, and {_host(settings)} is not this machine",
                "take it out of the chain, drop local_only, or set `trust_local: true` on the engine if it is here",
            )


def _host(settings: EngineSettings) -> str:
    return urlsplit(settings.base_url or "").hostname or ""


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
