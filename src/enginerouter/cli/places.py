"""Where the configuration of this machine's router may be: as named, here, or where install.sh puts it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

HERE = Path("config.yaml")


def config_paths(environ: Mapping[str, str]) -> list[Path]:
    """In the order in which they count."""
    if named := environ.get("ENGINEROUTER_CONFIG"):
        return [Path(named)]
    home = environ.get("XDG_CONFIG_HOME") or (Path(environ["HOME"]) / ".config" if environ.get("HOME") else None)
    return [HERE, *([Path(home) / "enginerouter" / HERE] if home else [])]


def config_to_read(environ: Mapping[str, str]) -> Path:
    """The first that is there; where none is, the first, so that an error names it."""
    paths = config_paths(environ)
    return next((path for path in paths if path.exists()), paths[0])


def config_to_write(environ: Mapping[str, str]) -> Path:
    """Where a new one goes unless told otherwise: never over that of an installed router."""
    return config_paths(environ)[0]
