"""`scope: system` where systemd does not run the machine: real commands, a readable error. No llama-server."""

from __future__ import annotations

import pytest
from real_kit import Start, demo_engine

from enginerouter.engines.systemctl import missing_system_manager
from llama import free_port
from user_manager import BINARY

pytestmark = pytest.mark.real


@pytest.mark.skipif(not BINARY.exists(), reason="no systemctl here")
@pytest.mark.skipif(missing_system_manager() is None, reason="systemd runs this machine")
def test_without_a_manager_of_the_system_the_error_says_so_in_words_and_others_serve(start: Start) -> None:
    """It used to be a command of 300 characters and "Failed to connect to bus"."""
    far = {"type": "systemd_unit", "scope": "system", "unit": "x", "base_url": f"http://127.0.0.1:{free_port()}"}
    router = start({"far": far, "light": {"type": "generic_process", "start_cmd": demo_engine("light")}})
    answer = router.post("/v1/chat/completions", {"model": "far", "messages": []})
    assert answer.status == 502
    message = str(answer.error["message"])
    assert message.startswith("engine 'far' cannot be started: ")
    assert "systemd" in message
    assert "use `scope: user`" in message
    assert "--property" not in message
    assert len(message) < 250
    assert router.ask("light")
