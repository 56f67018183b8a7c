"""Routers that are processes; after every test nothing of theirs may be left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_kit import RealRouter, Serve, Start


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(config, port)`: a router that is up, with a file as it is."""
    routers: list[RealRouter] = []

    def make(config: Path, port: int) -> RealRouter:
        router = RealRouter(config, port)
        routers.append(router)
        router.start()
        return router

    yield make
    for router in routers:
        router.end()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(engines, **settings)`: a router that is up."""
    routers: list[RealRouter] = []

    def make(engines: dict[str, Any], **settings: Any) -> RealRouter:
        router = RealRouter.of(tmp_path, engines, settings)
        routers.append(router)
        router.start()
        return router

    yield make
    for router in routers:
        router.end()
