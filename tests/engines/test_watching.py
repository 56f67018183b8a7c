"""What a background probe asks of each kind of engine, and what counts as a sign of life."""

from __future__ import annotations

from typing import Any

import pytest

from enginerouter.config.engines import ApiSwap, EngineSettings, GenericProcess, Ollama, Remote, SystemdUnit
from enginerouter.engines.probe import Reply
from enginerouter.engines.watching import is_alive, is_always_on, probe_url

PROCESS = GenericProcess(name="p", start_cmd=("x",))
REMOTE = Remote(name="r", base_url="https://openrouter.ai/api/v1")
BESIDE: dict[str, Any] = {"holds_memory": False}


@pytest.mark.parametrize(
    ("settings", "address", "url"),
    [
        (PROCESS, "http://127.0.0.1:9", "http://127.0.0.1:9/health"),
        (GenericProcess(name="p", start_cmd=("x",), ready_path="/v1/models"), "http://h", "http://h/v1/models"),
        (GenericProcess(name="p", start_cmd=("x",), ready_path=None), "http://h", "http://h/"),
        (SystemdUnit(name="u", unit="u.service", base_url="http://h"), "http://h", "http://h/v1/models"),
        (Ollama(name="o"), "http://h:11434", "http://h:11434/api/tags"),
        (ApiSwap(name="t", base_url="http://h", health_path="/health"), "http://h", "http://h/health"),
        (REMOTE, "https://openrouter.ai/api/v1", "https://openrouter.ai/api/v1/models"),
        (REMOTE, "http://box:8077", "http://box:8077/v1/models"),
    ],
)
def test_what_is_asked(settings: EngineSettings, address: str, url: str) -> None:
    assert probe_url(settings, address) == url


@pytest.mark.parametrize(
    ("settings", "is_so"),
    [
        (PROCESS, False),
        (GenericProcess(name="p", start_cmd=("x",), **BESIDE), False),  # ours to start, so it may be stopped
        (Ollama(name="o"), False),
        (Ollama(name="o", **BESIDE), True),
        (ApiSwap(name="t", **BESIDE), True),
        (REMOTE, True),
        (Remote(name="r", unconfigured=True), False),
    ],
)
def test_what_should_answer_though_nothing_of_it_is_resident(settings: EngineSettings, is_so: bool) -> None:
    assert is_always_on(settings) == is_so


@pytest.mark.parametrize(
    ("settings", "status", "is_resident", "is_so"),
    [
        (PROCESS, 200, True, True),
        (PROCESS, 404, True, True),
        (PROCESS, 500, True, False),
        (PROCESS, 503, True, False),
        (PROCESS, 0, True, False),
        (GenericProcess(name="p", start_cmd=("x",), ready_status=503), 503, True, True),
        (ApiSwap(name="t", **BESIDE), 503, False, True),
        (ApiSwap(name="t", **BESIDE), 0, False, False),
        (ApiSwap(name="t", **BESIDE), 503, True, False),
        (REMOTE, 401, False, True),
        (REMOTE, 503, False, False),
    ],
)
def test_what_counts_as_a_sign_of_life(settings: EngineSettings, status: int, is_resident: bool, is_so: bool) -> None:
    assert is_alive(settings, Reply(status, None, ""), is_resident=is_resident) == is_so
