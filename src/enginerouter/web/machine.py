"""What a configuration means on this very machine: whose addresses are its own."""

from __future__ import annotations

import socket

import psutil

from enginerouter.config.model import Config
from enginerouter.errors import Problem
from enginerouter.routing import fences


def own_networks() -> list[fences.Network]:
    """The addresses of this machine, and the networks of its bridges."""
    interfaces = psutil.net_if_addrs().items()
    return fences.own_networks([(name, a.address, a.netmask) for name, found in interfaces for a in found])


def own_names() -> frozenset[str]:
    """What this machine is called, by itself and on its network."""
    full = socket.gethostname().lower()
    short = full.partition(".")[0]
    return frozenset({full, short, f"{short}.local"})


def warnings_here(config: Config) -> list[Problem]:
    """What the file alone does not tell, and somebody should look at."""
    own = own_networks()
    engines = config.engines.values()
    found = [fences.takes_memory_elsewhere(engine, own) for engine in engines]
    if any(alias.local_only for alias in config.aliases.values()) or not all(key.remote for key in config.api_keys):
        found += [fences.fences_out(engine, own, own_names()) for engine in engines]
    return [warning for warning in found if warning is not None]
