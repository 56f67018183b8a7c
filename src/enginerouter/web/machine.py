"""What a configuration means on this very machine: whose addresses are its own."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import psutil

from enginerouter.config.load import Loaded, load
from enginerouter.config.report import Report
from enginerouter.errors import ConfigError
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


def load_here(path: Path) -> Loaded:
    """A configuration that can be used on this machine. Blocks. Raises ConfigError with all problems."""
    loaded = load(path)
    config, own, names = loaded.config, own_networks(), own_names()
    report = Report(loaded.file, loaded.lines)
    for engine in config.engines.values():
        fences.warn_of_memory_elsewhere(engine, own, report)
    stays_local = False
    for chain in Directory(config).aliases(lambda _name: True):
        engines = dict.fromkeys(target.engine for target in chain.targets)
        fences.check_stays_here(chain.alias, (config.engines[name] for name in engines), own, report)
        stays_local = stays_local or any(target.stays_local for target in chain.targets)
    if stays_local or not all(key.remote for key in config.api_keys):
        for engine in config.engines.values():
            fences.warn_of_doubt(engine, own, names, report)
    warnings = (*loaded.warnings, *report.warnings)
    if report.errors:
        raise ConfigError(report.errors, warnings)
    return dataclasses.replace(loaded, warnings=warnings)
