"""`enginerouter unit`: print the systemd user unit that serves a configuration."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from enginerouter.config.load import load
from enginerouter.service.unit import Service, service_text, socket_text
from enginerouter.web.slots_of import stop_s


def unit(path: Path, *, wants_socket: bool, systemd_version: int) -> int:
    """Print it. Raises ConfigError if the file cannot be served: then its stop time is not known."""
    config = load(path).config
    if wants_socket:
        sys.stdout.write(socket_text(config.host, config.port))
        return 0
    command = _command()
    if command is None:
        print("enginerouter is not installed as a command: there is nothing that a unit could start", file=sys.stderr)
        return 1
    service = Service(
        executable=command,
        config=Path(os.path.abspath(path)),
        stop_s=stop_s(config),
        keeps_engines=config.on_exit == "keep",
        path=os.environ.get("PATH", ""),
        systemd_version=systemd_version,
    )
    sys.stdout.write(service_text(service))
    return 0


def _command() -> Path | None:
    """The command of this very installation, else the one on PATH."""
    beside = Path(sys.executable).parent / "enginerouter"
    if beside.exists():
        return beside
    found = shutil.which("enginerouter")
    return Path(found) if found is not None else None
