"""The models of make_gguf.py on a real llama-server: what the other real tests stand on."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import openai
import psutil
import pytest

from llama import model_file, need_llama_server, no_mmap_flags, running_llama_server

pytestmark = pytest.mark.real

ASK = [{"role": "user", "content": "Who is there?"}]
MIB = 1024 * 1024


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def test_a_tiny_model_answers_in_its_own_name() -> None:
    with running_llama_server(model_file("red")) as (url, _), client_of(url) as client:
        answer = client.chat.completions.create(model="red", messages=ASK, max_tokens=12)
        words = answer.choices[0].message.content.split()
        assert len(words) == 12
        assert all(word.startswith("red") for word in words)
        assert answer.choices[0].finish_reason == "length"


def test_a_tiny_model_streams_one_chunk_a_token() -> None:
    with running_llama_server(model_file("red")) as (url, _), client_of(url) as client:
        stream = client.chat.completions.create(model="red", messages=ASK, max_tokens=12, stream=True)
        parts = [c.choices[0].delta.content for c in stream if c.choices and c.choices[0].delta.content]
        assert len(parts) == 12
        assert all(part.startswith(" red") for part in parts)


def test_a_tiny_model_does_not_end_before_max_tokens() -> None:
    with running_llama_server(model_file("red")) as (url, _), client_of(url) as client:
        answer = client.chat.completions.create(model="red", messages=ASK, max_tokens=3000, temperature=1.5)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3000


def test_a_big_model_is_memory_of_the_process_and_leaves_with_it() -> None:
    model = model_file("big", size=1024)
    server = need_llama_server()
    with (
        running_llama_server(model, *no_mmap_flags(server), "-c", "512") as (url, process),
        client_of(url) as client,
    ):
        memory = psutil.Process(process.pid).memory_full_info()
        assert memory.uss > 900 * MIB
        answer = client.chat.completions.create(model="big", messages=ASK, max_tokens=2)
        assert answer.choices[0].message.content.startswith(" big")
        before = psutil.virtual_memory().available
        process.terminate()
        process.wait(timeout=10)
        deadline = time.monotonic() + 10
        while psutil.virtual_memory().available < before + 800 * MIB:
            assert time.monotonic() < deadline, "its memory did not come back"
            time.sleep(0.05)


def test_the_flags_of_an_older_build_end_this_one_at_once() -> None:
    server = need_llama_server()
    if no_mmap_flags(server) == ["--no-mmap"]:
        pytest.skip("an older build, which knows --no-mmap")
    started = subprocess.run(
        [server, "-m", str(model_file("red")), "--no-mmap"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert started.returncode == 1
    assert "invalid argument: --no-mmap" in started.stdout + started.stderr


def test_a_model_is_written_once_and_then_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEROUTER_CACHE", str(tmp_path))
    first = model_file("blue").stat()
    again = model_file("blue").stat()
    assert (first.st_ino, first.st_mtime) == (again.st_ino, again.st_mtime)
    assert sorted(p.name for p in (tmp_path / "models").iterdir()) == ["blue-tiny.gguf", "lock"]
