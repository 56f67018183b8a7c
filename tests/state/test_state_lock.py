"""One state file, one router."""

from pathlib import Path

import pytest

from enginerouter.state import StateFile


async def test_a_second_router_cannot_claim_the_state_file_of_a_running_one(tmp_path: Path) -> None:
    first, second = StateFile(tmp_path / "state.json"), StateFile(tmp_path / "state.json")
    first.lock()
    with pytest.raises(BlockingIOError):
        second.lock()
    await first.close()
    second.lock()
    await second.close()
