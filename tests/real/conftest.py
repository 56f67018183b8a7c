"""Routers that are processes; after every test nothing of theirs may be left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_kit import RealRouter, Start


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(engines, **settings)`: a router that is up."""
    routers: list[RealRouter] = []

    def make(engines: dict[str, Any], **settings: Any) -> RealRouter:
        router = RealRouter(tmp_path, engines, settings)
        routers.append(router)
        router.start()
        return router

    yield make
    for router in routers:
        router.end()
