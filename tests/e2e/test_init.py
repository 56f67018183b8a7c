"""`enginerouter init` against servers that speak as the real ones do: what is found, written, asked and refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from engine_server import Received, Script
from http_servers import LmStudio, OllamaDaemon, ScriptedServer, Tabby, say
from router_kit import RouterUnderTest, chat

from enginerouter.cli.main import main
from enginerouter.config.load import load
from enginerouter.config.model import ApiSwap, Config, GenericProcess, Ollama
from enginerouter.setup.propose import Answers, propose
from enginerouter.setup.running import Running
from enginerouter.setup.scan import Found, scan
from enginerouter.swap.pick import Picked
from enginerouter.web.app import Router


class Listing(ScriptedServer):
    """Lists models as one owner; knows nothing else, and asks for a key if it has one."""

    def __init__(self, owner: str, *models: str, key: str = "") -> None:
        super().__init__(owner)
        self.owner, self.models, self.key = owner, models, key

    def control(self, what: str, body: Any, received: Received) -> Script:
        if self.key and received.header("Authorization") != f"Bearer {self.key}":
            return say({"error": "Unauthorized"}, 401)
        if what == "GET /v1/models":
            return say({"data": [{"id": m, "owned_by": self.owner, "max_model_len": 4096} for m in self.models]})
        return say({"error": "no"}, 404)


@contextlib.asynccontextmanager
async def up(*servers: ScriptedServer) -> AsyncIterator[str]:
    """The servers listen; gives their ports as the option takes them."""
    for server in servers:
        await server.listen()
    try:
        yield ",".join(str(server.port) for server in servers)
    finally:
        for server in servers:
            await server.stop()


async def init(*words: str) -> int:
    """The command, with an event loop of its own, as from a shell under a pipe."""
    return await asyncio.to_thread(main, ["init", *words])


def engine_at(config: Config, server: ScriptedServer) -> Any:
    return next(e for e in config.engines.values() if e.base_url == server.url)


async def test_servers_that_are_always_on_are_written_so_that_they_swap(tmp_path: Path) -> None:
    """Found, written, and served by a router: one loads, and is unloaded for the other."""
    lms, daemon, path = LmStudio(), OllamaDaemon("phi:3b"), tmp_path / "config.yaml"
    async with up(lms, daemon) as ports:
        assert await init("--yes", "--ports", ports, "-c", str(path), "--port", "0") == 0
        config = load(path).config
        assert isinstance(engine_at(config, lms), ApiSwap)
        assert isinstance(engine_at(config, daemon), Ollama)
        assert "Its models need not be declared: qwen, gemma." in path.read_text()
        router = Router(config, memory=Picked("none"))
        await router.start()
        under_test = RouterUnderTest(router, {}, None)  # type: ignore[arg-type]
        try:
            assert (await under_test.ask(chat("gemma"), within_s=20)).status == 200
            assert len(lms.loaded) == 1
            assert (await under_test.ask(chat("phi:3b"), within_s=20)).status == 200
            assert (lms.loaded, daemon.running) == ([], ["phi:3b"])
        finally:
            await router.stop()


async def test_what_answers_alike_is_told_apart_and_what_is_unknown_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Web(ScriptedServer):
        def control(self, what: str, body: Any, received: Received) -> Script:
            return say("<html>")

    vllm, swap, web = Listing("vllm", "q"), Listing("llama-swap", "x"), Web("web")
    async with up(vllm, swap, web) as ports:
        assert await init("--detect-only", "--json", "--ports", ports) == 0
        found = {one["base_url"]: one for one in json.loads(capsys.readouterr().out)["found"]}
        assert found[vllm.url]["kind"] == "vllm"
        assert found[vllm.url]["models"] == [{"id": "q", "context_length": 4096}]
        assert found[vllm.url]["process"]["pid"] == os.getpid()
        assert found[swap.url]["left_out"].startswith("it is a router itself; `enginerouter import`")
        assert found[web.url]["left_out"] == "nothing here knows what it is"
        assert not list(tmp_path.iterdir())
        assert await init("--detect-only", "--ports", ports) == 0
        out = capsys.readouterr().out
        assert f"vLLM at {vllm.url}" in out
        assert "q (4096 tokens)" in out


async def test_nothing_is_asked_that_loads_wakes_or_generates() -> None:
    lms, daemon, vllm = LmStudio(), OllamaDaemon(), Listing("vllm", "q")
    async with up(lms, daemon, vllm):
        await scan(ports=[s.port for s in (lms, daemon, vllm)], looks_for_processes=False)
        for server in (lms, daemon, vllm):
            assert {r.method for r in server.received} == {"GET"}
            # SGLang's /health generates; llama-server's /slots wakes it.
            assert not [r.target for r in server.received if r.target in ("/health", "/slots", "/health_generate")]


async def test_one_that_hangs_keeps_nobody_waiting() -> None:
    class Hangs(ScriptedServer):
        def control(self, what: str, body: Any, received: Received) -> Script:
            return [asyncio.Event()]

    hangs, vllm = Hangs("hangs"), Listing("vllm", "q")
    async with up(hangs, vllm):
        began = time.monotonic()
        found = await scan(ports=[hangs.port, vllm.port], looks_for_processes=False)
        assert time.monotonic() - began < 4
        assert [one.kind for one in found] == [None, "vllm"]


async def test_with_nothing_found_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    assert await init("--yes", "--ports", "1", "-c", str(path)) == 1
    assert not path.exists()
    err = capsys.readouterr().err
    assert "no engine was found on 127.0.0.1 (ports 1)" in err
    assert "--list-presets" in err


async def test_a_file_that_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("mine")
    async with up(daemon := OllamaDaemon()) as ports:
        for words in (("--yes", "--ports", ports), ("--preset", "vllm"), ("--example",)):
            assert await init(*words, "-c", str(path)) == 1
            assert path.read_text() == "mine"
            assert "--force" in capsys.readouterr().err
        assert not daemon.received, "nobody was asked for a file that cannot be written"
        assert await init("--yes", "--force", "--ports", ports, "-c", str(path)) == 0
    assert load(path).config.engines
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_what_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert await init("--example", "-c", str(tmp_path / "file" / "config.yaml")) == 1
    err = capsys.readouterr().err
    assert "cannot be written" in err
    assert len(err.splitlines()) == 1


async def test_presets_and_the_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    words = ["--preset", "llamacpp", "--preset", "groq", "--port", "9999", "--host", "127.0.0.2"]
    assert await init(*words, "-c", str(path)) == 0
    config = load(path).config
    assert (list(config.engines), config.port, config.host) == (["llamacpp", "groq"], 9999, "127.0.0.2")
    lines = path.read_text().splitlines()
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  line ")]
    assert told
    assert all("CHANGE" in lines[int(line.split()[1].rstrip(":")) - 1] for line in told)
    assert await init("--example", "--force", "-c", str(path)) == 0
    assert load(path).config.default_model == "qwen3-30b"
    assert await init("--preset", "vlm", "-c", str(path), "--force") == 1
    assert "did you mean 'vllm'?" in capsys.readouterr().err
    assert await init("--list-presets") == 0
    assert "tabbyapi      TabbyAPI: always on" in capsys.readouterr().out
    assert await init("--list-presets", "--json") == 0
    assert "vllm" in json.loads(capsys.readouterr().out)


def test_wrong_usage_ends_with_2() -> None:
    for words in (["--ports", "x"], ["--port", "99999"], ["--preset"], ["--example", "--preset", "vllm"], ["--nope"]):
        with pytest.raises(SystemExit) as ended:
            main(["init", *words])
        assert ended.value.code == 2


# --- what a process is written as


def found(kind: str, port: int, running: Running | None, *models: str, **more: Any) -> Found:
    from enginerouter.setup.recognise import FoundModel

    return Found("127.0.0.1", port, kind, tuple(FoundModel(m) for m in models), running=running, **more)


def config_of(tmp_path: Path, *one: Found, **answers: Any) -> tuple[Config, str, list[str]]:
    proposal = propose(one, Answers(**answers))
    path = tmp_path / "config.yaml"
    path.write_text(proposal.document.text())
    return load(path).config, path.read_text(), proposal.told


def test_a_process_is_written_with_its_command_folder_and_environment(tmp_path: Path) -> None:
    argv = ("/opt/llama server", "-m", "/m/$x {port}.gguf", "--port", "8080", "--json", '{"a": 1}')
    process = Running(7, argv, cwd=tmp_path, env={"CUDA_VISIBLE_DEVICES": "0", "HF_TOKEN": "$ecret"})
    config, text, _ = config_of(tmp_path, found("llamacpp", 8080, process, "x"))
    engine = config.engines["llamacpp"]
    assert isinstance(engine, GenericProcess)
    assert (engine.start_cmd, engine.cwd, engine.env) == (argv, tmp_path, process.env)
    assert (engine.base_url, engine.ready_check) == ("http://127.0.0.1:8080", "status==ok")
    assert "As process 7 was started" in text


def test_a_unit_stays_a_unit(tmp_path: Path) -> None:
    process = Running(7, ("vllm", "serve", "q"), unit="vllm.service", scope="user")
    config, _, told = config_of(tmp_path, found("vllm", 8000, process, "q"))
    engine = config.engines["vllm"]
    assert (engine.type, getattr(engine, "unit", ""), getattr(engine, "scope", "")) == (
        "systemd_unit", "vllm.service", "user",
    )  # fmt: skip
    assert (engine.base_url, engine.ready_check) == ("http://127.0.0.1:8000", "model:q")
    assert told == ["vLLM at http://127.0.0.1:8000: engine 'vllm', 1 model, unit vllm.service"]


def test_a_container_is_started_and_stopped_as_one(tmp_path: Path) -> None:
    process = Running(7, ("vllm", "serve", "q"), container="abc123")
    config, _, _ = config_of(tmp_path, found("vllm", 8000, process, "q"))
    engine = config.engines["vllm"]
    assert isinstance(engine, GenericProcess)
    assert engine.start_cmd == ("docker", "start", "--attach", "abc123")
    assert engine.stop_cmd == ("docker", "stop", "abc123")


def test_a_command_that_is_not_known_is_left_switched_off_or_told(tmp_path: Path) -> None:
    process = Running(0, doubt="its process cannot be seen")
    config, text, told = config_of(tmp_path, found("sglang", 30000, process, "q"))
    assert not config.engines["sglang"].enabled
    assert "CHANGE start_cmd, then remove `enabled`: its process cannot be seen" in text
    assert "its process cannot be seen" in told[0]
    config, _, _ = config_of(tmp_path, found("sglang", 30000, process, "q"), start_cmds={30000: "run --port 30000"})
    engine = config.engines["sglang"]
    assert isinstance(engine, GenericProcess)
    assert (engine.enabled, engine.start_cmd) == (True, ("run", "--port", "30000"))


def test_an_engine_of_another_machine_is_remote(tmp_path: Path) -> None:
    config, _, _ = config_of(tmp_path, found("vllm", 8000, None, "q", api_key="k"))
    assert (config.engines["vllm"].type, config.engines["vllm"].api_key) == ("remote", "k")


def test_an_engine_that_somebody_keeps_is_left_out(tmp_path: Path) -> None:
    kept = found("llamacpp", 1, Running(1, ("llama-server",), parent="ollama"), "x")
    ours = found("llamacpp", 2, Running(2, ("llama-server",), is_routers=True), "x")
    proposal = propose([kept, ours], Answers())
    assert not proposal.document.engines
    assert "Ollama has started it and keeps it" in proposal.told[0]
    assert "an enginerouter has started it" in proposal.told[1]


def test_two_engines_with_one_model_keep_both(tmp_path: Path) -> None:
    one = found("vllm", 8000, Running(1, ("vllm",)), "on", "1.5")
    two = found("vllm", 8001, Running(2, ("vllm",)), "on")
    config, _, _ = config_of(tmp_path, one, two)
    assert [(m.id, m.engine, m.upstream_id) for m in config.models] == [
        ("on", "vllm", None), ("1.5", "vllm", None), ("on-vllm-2", "vllm-2", "on"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["yes", "0x1F", "a: b", "#x", "'q'", "org/m:tag", "{port}", "$HOME", "模型", "a" * 300]
)
def test_names_that_yaml_would_misread_are_quoted(tmp_path: Path, name: str) -> None:
    config, _, _ = config_of(tmp_path, found("vllm", 8000, Running(1, ("vllm", name)), name))
    assert [m.id for m in config.models] == [name]
    engine = config.engines["vllm"]
    assert isinstance(engine, GenericProcess)
    assert engine.start_cmd == ("vllm", name)


def test_a_server_with_thousands_of_names_does_not_fill_the_file(tmp_path: Path) -> None:
    names = [f"model-{n}" for n in range(5000)]
    config, _, _ = config_of(tmp_path, found("vllm", 8000, Running(1, ("vllm",)), *names))
    assert len(config.models) == 100
    _, text, _ = config_of(tmp_path, found("ollama", 11434, None, *names))
    assert "4992 more" in text


async def test_tabbyapis_keys_come_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "api_tokens.yml").write_text("api_key: own\nadmin_key: secret\n")
    monkeypatch.chdir(tmp_path)
    tabby, path = Tabby(), tmp_path / "config.yaml"
    async with up(tabby) as ports:
        assert await init("--yes", "--ports", ports, "-c", str(path)) == 0
    engine = engine_at(load(path).config, tabby)
    assert engine.control_headers == {"x-admin-key": "secret"}
    assert engine.load_path == "/v1/model/load"


# --- at a terminal


def at_terminal(words: list[str], *answers: str) -> tuple[int, str]:
    """The command at a terminal of its own, and somebody who answers each question. Status, and all that was shown."""
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "enginerouter", *words]
    with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as process:
        os.close(theirs)
        shown, left = "", list(answers)
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # Linux says so when the other end is closed
                break
            if not piece:
                break
            shown += piece.decode()
            if left and shown.rstrip("\r\n").endswith(("] ", "): ")):
                os.write(ours, left.pop(0).encode() + b"\n")
                shown += "\n"
        status = process.wait(30)
    os.close(ours)
    assert not left, (left, shown)
    return status, shown


class Locked(Listing):
    """TabbyAPI, as it answers those who bring no key."""

    def control(self, what: str, body: Any, received: Received) -> Script:
        if received.header("Authorization") != f"Bearer {self.key}":
            return say({"detail": "Please provide an API key"}, 401)
        if what == "GET /v1/model":
            return say({"id": self.models[0], "owned_by": "tabbyAPI"})
        return super().control(what, body, received)


async def test_at_a_terminal_only_what_cannot_be_known_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("mine")
    vllm, tabby = Listing("vllm", "q"), Locked("tabbyAPI", "yi", key="sk-1")
    async with up(vllm, tabby) as ports:
        words = ["init", "--ports", ports, "-c", str(path)]
        status, shown = await asyncio.to_thread(at_terminal, words, "n")
        assert (status, path.read_text()) == (1, "mine")
        assert "Overwrite it?" in shown
        # Overwrite; the key; which address; and the engine that runs – this test – is not to be ended.
        status, shown = await asyncio.to_thread(at_terminal, words, "y", "sk-1", "0.0.0.0", "")
    assert status == 0, shown
    assert "asks for a key" in shown
    assert "sk-1" not in shown
    config = load(path).config
    assert config.host == "0.0.0.0"
    assert engine_at(config, tabby).api_key == "sk-1"
    assert [m.id for m in config.models] == ["q"]


async def test_with_yes_nothing_is_asked_at_a_terminal_either(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    async with up(Listing("vllm", "q")) as ports:
        words = ["init", "--yes", "--ports", ports, "-c", str(path)]
        status, shown = await asyncio.to_thread(at_terminal, words)
    assert status == 0
    assert "?" not in shown
