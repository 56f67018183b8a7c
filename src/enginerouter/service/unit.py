"""The systemd user unit, as text. Pure, and of the standard library alone: the installer prints it before it installs.

`python -m enginerouter.service.unit --help` prints one; `enginerouter unit` prints it for a configuration.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

NAME = "enginerouter.service"
SOCKET_NAME = "enginerouter.socket"
# By this line the installer knows a unit as its own.
MARK = "# Written by enginerouter. Changes belong into a drop-in: systemctl --user edit enginerouter"
# systemd 253 brought Type=notify-reload.
NOTIFY_RELOAD_VERSION = 253
DEFAULT_STOP_S = 10.0 + 30.0 + 10.0
SPARE_S = 10.0
WATCHDOG_S = 30


@dataclass(frozen=True, slots=True)
class Service:
    """What a unit starts, and how. `stop_s`: what an orderly end may take; `path`: where engines' binaries are.

    `systemd_version` 0: any; every version understands that unit.
    """

    executable: Path
    config: Path
    stop_s: float
    keeps_engines: bool = False
    path: str = ""
    systemd_version: int = 0


def stop_seconds(shutdown_timeout_s: float, end_timeouts_s: Iterable[float]) -> float:
    """What an orderly end may take: streams end, then engines end side by side, and something to spare."""
    return shutdown_timeout_s + max(end_timeouts_s, default=0.0) + SPARE_S


def quoted(word: str) -> str:
    """One word of a systemd command line or assignment, taken literally (systemd.syntax(7), systemd.unit(5))."""
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("\n", "\\n")):
        word = word.replace(plain, escaped)
    return f'"{word}"'


def _path(path: Path) -> str:
    """A path where systemd takes the rest of the line: no quotes, but specifiers."""
    return str(path).replace("%", "%%")


def service_text(service: Service) -> str:
    """The `.service` file."""
    folder = service.config.parent
    # Only words of a command line have variables.
    command = f"{quoted(str(service.executable))} serve --config {quoted(str(service.config)).replace('$', '$$')}"
    if service.systemd_version >= NOTIFY_RELOAD_VERSION:
        type_lines = ["Type=notify-reload"]
    else:
        type_lines = ["Type=notify", "ExecReload=kill -HUP $MAINPID"]
    path_lines = [f"Environment={quoted(f'PATH={service.path}')}"] if service.path else []
    kill_mode = "process" if service.keeps_engines else "mixed"
    lines = [
        MARK,
        "[Unit]",
        "Description=enginerouter: one port for the LLM engines of this machine",
        "StartLimitIntervalSec=120",
        "StartLimitBurst=5",
        "",
        "[Service]",
        *type_lines,
        "NotifyAccess=main",
        f"ExecStart={command}",
        "# Keys of remote engines: NAME=value lines, for api_key_env and ${NAME} in the configuration.",
        f"EnvironmentFile=-{_path(folder / 'env')}",
        *path_lines,
        f"WorkingDirectory={_path(folder)}",
        "Restart=on-failure",
        "RestartSec=2",
        "# Fed while the coordinator turns: a router that is there but stuck is started anew.",
        f"WatchdogSec={WATCHDOG_S}",
        "# The router stops its engines itself and sees them gone; what is left after that is killed.",
        f"KillMode={kill_mode}",
        f"TimeoutStopSec={service.stop_s:g}",
        "# The kernel ending an engine for want of memory is the router's to report, not the service's end.",
        "OOMPolicy=continue",
        "LimitNOFILE=65536",
        "# An engine's core dump is as large as its model, and holds what users wrote.",
        "LimitCORE=0",
        "UMask=0077",
        "",
        "[Install]",
        "WantedBy=default.target",
        "",
    ]
    return "\n".join(lines)


def socket_text(host: str, port: int) -> str:
    """The `.socket` file: systemd listens, so that no connection is refused while the router is exchanged."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [
        MARK,
        "[Unit]",
        "Description=enginerouter's port",
        "",
        "[Socket]",
        f"ListenStream={address}",
        "Backlog=512",
    ]
    return "\n".join([*lines, "", "[Install]", "WantedBy=sockets.target", ""])


def add_version(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--systemd-version",
        type=int,
        default=0,
        metavar="N",
        help=f"what `systemctl --version` says; from {NOTIFY_RELOAD_VERSION} on, `systemctl reload` waits for the end",
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m enginerouter.service.unit", description="Print the systemd user unit of a router."
    )
    parser.add_argument("--executable", type=Path, required=True, help="the enginerouter command")
    parser.add_argument("--config", type=Path, required=True, help="the configuration file")
    add_version(parser)
    arguments = parser.parse_args()
    sys.stdout.write(
        service_text(
            Service(
                Path(os.path.abspath(arguments.executable)),
                Path(os.path.abspath(arguments.config)),
                stop_s=DEFAULT_STOP_S + SPARE_S,
                path=os.environ.get("PATH", ""),
                systemd_version=arguments.systemd_version,
            )
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
