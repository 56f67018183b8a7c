"""What a configuration means on this very machine: whose addresses are its own."""

from __future__ import annotations

import socket

import psutil

from enginerouter.config.model import Config
from enginerouter.errors import Problem
from enginerouter.routing import fences
from enginerouter.routing.directory import Directory


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
    aliases = Directory(config).aliases(lambda _name: True)
    must_stay = {target.engine for _, targets in aliases for target in targets if target.stays_local}
    if must_stay or not all(key.remote for key in config.api_keys):
        names = own_names()
        found += [fences.fences_out(e, own, names, must_stay=e.name in must_stay) for e in engines]
    return [warning for warning in found if warning is not None]
