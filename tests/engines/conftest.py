"""After every test nothing that an engine launched may be left."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from boxes import Box


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    box = Box(tmp_path)
    yield box
    await box.close()
    assert box.living() == set(), "a process outlived its engine"
