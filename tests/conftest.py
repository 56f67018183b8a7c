"""What all tests share: a user manager, started once for those that need one, and little work for the collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from user_manager import UserManager, shared_manager


def pytest_collection_finish() -> None:
    """What collecting made stays to the end: nothing is gained by looking through all of it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def _shared_manager() -> Iterator[UserManager]:
    with shared_manager() as manager:
        yield manager


@pytest.fixture
def manager(_shared_manager: UserManager, monkeypatch: pytest.MonkeyPatch) -> Iterator[UserManager]:
    """A real `systemd --user` that the environment points at; its units go after the test."""
    for name, value in _shared_manager.env.items():
        monkeypatch.setenv(name, value)
    yield _shared_manager
    for unit in _shared_manager.units():
        _shared_manager.forget(unit)
