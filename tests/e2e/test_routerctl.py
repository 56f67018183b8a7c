"""`routerctl` as its user meets it: what it prints, where, and how it ends – before a real router."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from engine_server import ok
from reload_kit import from_file, process
from router_kit import MakeRouter, RouterUnderTest, chat

from enginerouter.cli import routerctl, show
from enginerouter.config.model import ApiKey
from enginerouter.errors import StartFailed

SOURCE = Path(__file__).resolve().parents[2] / "src"


@dataclass
class Ended:
    code: int
    out: str
    err: str


async def ctl(*words: str) -> Ended:
    """In a thread: it waits for answers, and the router answers from this loop."""

    def call() -> Ended:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = routerctl.main(words)
            except SystemExit as end:
                code = int(end.code or 0)
        return Ended(code, out.getvalue(), err.getvalue())

    return await asyncio.to_thread(call)


@pytest.fixture(autouse=True)
def _nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("URL", "API_KEY", "API_KEY_FILE", "CONFIG"):
        monkeypatch.delenv(f"ENGINEROUTER_{name}", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
async def router(make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch) -> RouterUnderTest:
    found = await make_router()
    monkeypatch.setenv("ENGINEROUTER_URL", found.url)
    return found


async def test_status_is_a_table_of_slots(router: RouterUnderTest) -> None:
    await router.load("a")
    ended = await ctl("status")
    assert (ended.code, ended.err) == (0, "")
    rows = [line.split() for line in ended.out.splitlines()]
    assert ["●", "a", "ready"] in [row[:3] for row in rows]
    assert ["·", "b", "cold"] in [row[:3] for row in rows]


async def test_json_is_what_the_router_said(router: RouterUnderTest) -> None:
    ended = await ctl("--json", "status")
    assert {s["slot"] for s in json.loads(ended.out)["slots"]} == {"a", "b"}


async def test_general_options_may_follow_the_command(router: RouterUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "slots" in json.loads((await ctl("status", "--json")).out)
    monkeypatch.delenv("ENGINEROUTER_URL")
    assert "slots" in json.loads((await ctl("--json", "status", "--url", router.url)).out)
    assert (await ctl("--url", router.url, "status")).code == 0


async def test_routing_is_told_in_tables(make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    aliases = {"best": {"chain": ("a", "b"), "description": "what fits"}, "old": {"chain": ("gone", "b")}}
    router = await make_router(aliases=aliases)
    monkeypatch.setenv("ENGINEROUTER_URL", router.url)

    async def rows(*words: str) -> list[list[str]]:
        ended = await ctl(*words)
        assert ended.code == 0, ended.err
        return [line.split() for line in ended.out.splitlines()]

    assert ["best", "chain", "a/a", "→", "b/b", "what", "fits"] in await rows("aliases")
    assert ["old", "chain", "b/b", "not", "known", "now:", "gone"] in await rows("aliases")
    assert ["a", "healthy"] in await rows("health")
    explained = await rows("explain", "best")
    assert explained[0] == ["best", "would", "be", "served", "by", "a/a"]
    assert ["b/b", "cold"] in [row[:2] for row in explained]
    call = router.router.health.admit("a", "a")
    assert call is not None
    call.cool_down(60.0, "the key is refused")
    assert ["a/a", "cooling"] in [row[:2] for row in await rows("health")]
    assert await rows("reset", "a/a") == [["tried", "again", "at", "once:", "a"], ["closed:", "a/a"]]


@pytest.mark.parametrize("command", ["reset", "unload", "use"])
async def test_a_name_that_is_like_nothing_is_told_the_engines(router: RouterUnderTest, command: str) -> None:
    ended = await ctl(command, "zz")
    assert (ended.code, ended.out) == (1, "")
    assert "the engines: a, b" in ended.err


async def test_use_swaps_and_says_how_long_it_took(router: RouterUnderTest) -> None:
    ended = await ctl("use", "b")
    assert ended.code == 0
    assert ended.out.startswith("b is ready in ")
    assert router.phase("b").value == "ready"
    assert (await ctl("use", "--no-wait", "b")).out.startswith("b is ready")


async def test_unload_frees_one_or_all(router: RouterUnderTest) -> None:
    await router.load("a")
    assert (await ctl("unload")).out == "unloading a\n"
    await router.until(lambda: router.phase("a").value == "cold")
    assert (await ctl("unload", "a")).out == "nothing of it is in memory\n"


async def test_models_and_queue(router: RouterUnderTest) -> None:
    await router.load("a")
    rows = [line.split() for line in (await ctl("models")).out.splitlines()]
    assert ["a", "a", "ready"] in rows
    assert (await ctl("queue")).out == "nobody waits\n"


async def test_hold_and_release(router: RouterUnderTest) -> None:
    ended = await ctl("hold", "comfyui", "--for", "60")
    assert ended.code == 0
    assert ended.out.startswith("hold: memory is free for comfyui (refuse, ")
    assert "hold: memory is free for comfyui (refuse, " in (await ctl("status")).out
    assert (await ctl("release", "comfyui")).out == "released: engines start again\n"
    assert (await ctl("release")).out == "there was no such hold\n"


async def test_status_tells_the_last_swaps_the_newest_first(router: RouterUnderTest) -> None:
    for model in ("a", "b"):
        await router.load(model)
    lines = (await ctl("status")).out.splitlines()
    rows = [line.split() for line in lines[lines.index("") + 1 :] if ":" in line]
    assert [(row[0], row[2], row[-1]) for row in rows] == [("b", "ok", "a"), ("a", "ok", rows[1][-1])]


async def test_status_says_why_the_last_swap_did_not_end_well() -> None:
    swapped = {"result": "failed", "total_s": 1.0, "error": "unit heavy cannot be stopped"}
    assert show.status({"last_swaps": {"a": swapped}})[-1] == "swap to a: unit heavy cannot be stopped"


async def test_the_queue_says_whose_requests_wait_and_since_when() -> None:
    waiting = [{"key": "agents", "count": 2, "longest_s": 12.3}, {"key": "boss", "count": 1, "longest_s": 1.0}]
    slot = {"slot": "a", "models": ["fast"], "queued": 3, "phase": "starting", "eta_s": 4.0, "waiting": waiting}
    row = show.queue({"slots": [slot]})[1]
    assert row.split("  ")[-1] == "agents ×2 for 12s, boss ×1 for 1.0s"
    assert row.startswith("a     fast")


async def test_an_unload_is_told_as_one_by_watch() -> None:
    told = show.event("swap", {"target": "none", "freed": ["a"], "result": "ok", "total_s": 0.4, "seconds": {}})
    assert told is not None
    assert told.startswith("unload of a: ok in 0.4s")


async def test_reload_says_what_has_changed_and_all_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with from_file(tmp_path, {"a": process(), "b": process()}) as router:
        monkeypatch.setenv("ENGINEROUTER_URL", router.url)
        assert (await ctl("reload")).out == "nothing has changed\n"
        router.write({"a": process("new"), "c": process()}, aliases={"x": "a"}, port=1)
        ended = await ctl("reload")
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.splitlines() == [
            "new: c",
            "gone, once idle: b",
            "restart at their next need: a",
            "keys that count at once: aliases",
            "count when the router is started again: port",
        ]
        router.write({"a": {"type": "generic_proces"}}, prot=1)
        ended = await ctl("reload")
        assert (ended.code, ended.out) == (1, "")
        first, *problems = ended.err.splitlines()
        assert "was not reloaded, the running one goes on: 2 problems" in first
        assert len(problems) == 2
        assert all(str(router.path) in problem for problem in problems)


async def test_an_unknown_name_ends_with_1_and_the_nearest_one(router: RouterUnderTest) -> None:
    ended = await ctl("use", "bb")
    assert (ended.code, ended.out) == (1, "")
    assert "did you mean 'b'" in ended.err


async def test_ping_tells_a_router_that_lives_from_one_that_is_stuck(
    router: RouterUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await ctl("ping")).code == 0
    monkeypatch.setattr(router.router.coordinator, "_turned_at", time.monotonic() - 60)
    assert (await ctl("ping")).code == 1


async def test_ping_is_not_taken_in_by_another_server(make_router: MakeRouter) -> None:
    """Many say `{"status": "ok"}` at /health."""
    router = await make_router()
    server = router.engines["a"].server
    server.script = ok(b'{"status": "ok"}')
    await server.listen()
    ended = await ctl("--url", f"http://127.0.0.1:{server.port}", "ping")
    assert ended.code == 1
    assert "no enginerouter" in ended.err


async def test_the_key_of_a_configuration_goes_to_its_own_router_only(
    make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    router = await make_router()
    stranger = router.engines["a"].server
    await stranger.listen()
    engines = {"a": {"type": "generic_process", "start_cmd": ["true", "{port}"]}}
    config = {"port": router.port, "api_keys": ["s3cret"], "engines": engines}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    url = f"http://127.0.0.1:{stranger.port}"
    for command in ("status", "ping", "models"):
        await ctl("--url", url, command)
    monkeypatch.setenv("ENGINEROUTER_URL", url)
    await ctl("status")
    assert len(stranger.received) >= 4
    assert not any("s3cret" in str(got.headers) for got in stranger.received)


async def test_reset_closes_what_is_open(router: RouterUnderTest) -> None:
    assert (await ctl("reset")).code == 0
    assert (await ctl("reset", "a")).code == 0


async def test_without_a_router_it_ends_with_3_and_says_where_it_looked() -> None:
    ended = await ctl("--url", "http://127.0.0.1:9", "status")
    assert (ended.code, ended.out) == (3, "")
    assert "no router answers at http://127.0.0.1:9" in ended.err


async def test_a_wrong_command_ends_with_2() -> None:
    ended = await ctl("statsu")
    assert ended.code == 2
    assert "usage: routerctl" in ended.err


async def test_what_is_no_router_is_told(make_router: MakeRouter) -> None:
    router = await make_router()
    await router.engines["a"].server.listen()
    ended = await ctl("--url", f"http://127.0.0.1:{router.engines['a'].server.port}", "status")
    assert ended.code == 1
    assert "no enginerouter" in ended.err


async def test_keys_come_from_the_environment_a_file_or_the_configuration(
    make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    router = await make_router(api_keys=(ApiKey(name="boss", key="s3cret", admin=True),))
    refused = await ctl("--url", router.url, "status")
    assert refused.code == 1
    assert "set ENGINEROUTER_API_KEY" in refused.err
    monkeypatch.setenv("ENGINEROUTER_API_KEY", "s3cret")
    assert (await ctl("--url", router.url, "status")).code == 0
    monkeypatch.delenv("ENGINEROUTER_API_KEY")
    (tmp_path / "key").write_text("s3cret\n")
    monkeypatch.setenv("ENGINEROUTER_API_KEY_FILE", str(tmp_path / "key"))
    assert (await ctl("--url", router.url, "status")).code == 0
    monkeypatch.delenv("ENGINEROUTER_API_KEY_FILE")
    config = {
        "port": router.port,
        "api_keys": ["s3cret"],
        "engines": {"a": {"type": "generic_process", "start_cmd": ["true", "{port}"]}},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert (await ctl("status")).code == 0, "the address and the key are in ./config.yaml"


async def test_a_key_file_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENGINEROUTER_API_KEY_FILE", str(tmp_path / "none"))
    ended = await ctl("status")
    assert ended.code == 1
    assert str(tmp_path / "none") in ended.err


async def test_watch_prints_what_happens_until_the_router_ends(router: RouterUnderTest) -> None:
    watching = asyncio.ensure_future(ctl("watch"))
    await router.until(lambda: len(router.router.telemetry.hub) == 1)
    await router.load("a")
    await router.stop()
    ended = await watching
    assert ended.code == 3
    assert "a: cold → " in ended.out
    assert "swap to a: ok in" in ended.out
    assert "a → a/a openai 200" in ended.out


async def test_watch_and_status_say_why_a_swap_failed(router: RouterUnderTest) -> None:
    why = "engine 'a' exited with status 3: \x1b[2Jno such file"
    router.engines["a"].start_error = StartFailed("a", why)
    assert (await router.ask(chat("a"))).status == 502
    status = (await ctl("--url", router.url, "status")).out
    shown = why.replace("\x1b", "\\x1b")
    assert status.count(shown) == 1, "with the failed starts"
    watching = asyncio.ensure_future(ctl("watch"))
    await router.until(lambda: len(router.router.telemetry.hub) == 1)
    await router.stop()
    said = (await watching).out
    assert re.search(rf"swap to a: failed in .*: {re.escape(shown)}", said)


async def test_watch_tells_the_past_in_its_order_and_with_its_times(router: RouterUnderTest) -> None:
    for model in ("a", "b"):
        await router.load(model)
    watching = asyncio.ensure_future(ctl("--json", "watch"))
    await router.until(lambda: len(router.router.telemetry.hub) == 1)
    await router.stop()
    told = [json.loads(line) for line in (await watching).out.splitlines()]
    past = [(e["event"], e["target"]) for e in told if e["event"] in ("swap", "request")]
    assert past[:4] == [("swap", "a"), ("request", "a/a"), ("swap", "b"), ("request", "b/b")]
    assert show.clock(0.0)[:5] in ("01-01", "12-31"), "what is of another day says so"


async def test_watch_ends_when_the_router_falls_silent(
    router: RouterUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a host does that has vanished: /events speaks every second."""
    monkeypatch.setattr(routerctl, "READ_TIMEOUT_S", 0.1)
    server = router.engines["a"].server
    server.script = [b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", asyncio.Event()]
    await server.listen()
    async with asyncio.timeout(5):
        ended = await ctl("--url", f"http://127.0.0.1:{server.port}", "watch")
    assert ended.code == 3
    assert "timed out" in ended.err


async def test_logs_are_printed_and_followed(make_router: MakeRouter, tmp_path: Path) -> None:
    router = await make_router(aliases={"fast": "a"})
    (tmp_path / "logs/engines").mkdir(parents=True)
    (tmp_path / "logs/engines/a.log").write_text("one\ntwo\n")
    assert (await ctl("--url", router.url, "logs", "a", "-n", "1")).out == "two\n"
    assert (await ctl("--url", router.url, "logs", "fast", "-n", "1")).out == "two\n", "a model means its engine"
    ended = await ctl("--url", router.url, "logs", "aa")
    assert (ended.code, ended.out) == (1, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_completions_know_every_command(shell: str, tmp_path: Path) -> None:
    ended = await ctl("completion", shell)
    for command in ("status", "unload", "explain", "watch"):
        assert command in ended.out
    if (program := shutil.which(shell)) is not None:
        script = tmp_path / "completion"
        script.write_text(ended.out)
        subprocess.run([program, "-n", str(script)], check=True, timeout=20)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
async def test_bash_completes_commands_and_their_options(tmp_path: Path) -> None:
    (tmp_path / "c").write_text((await ctl("completion", "bash")).out)

    assert await completed(tmp_path / "c", "unl") == ["unload"]
    assert await completed(tmp_path / "c", "hold", "--f") == ["--for"]
    assert await completed(tmp_path / "c", "completion", "f") == ["fish"]


async def completed(script: Path, *words: str, names: str = "") -> list[str]:
    """What bash offers after `routerctl WORDS`, where the router has these names."""
    line = " ".join(("routerctl", *words))
    quoted = " ".join(f"'{w}'" for w in ("routerctl", *words))
    text = (
        f"routerctl() {{ echo '{names}'; }}; . {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; "
        f"COMP_LINE='{line}'; COMP_POINT={len(line)}; _routerctl; echo ${{COMPREPLY[@]}}"
    )
    said = await asyncio.to_thread(subprocess.run, ["bash", "-c", text], capture_output=True, text=True, timeout=20)
    return said.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
async def test_bash_completes_names_of_models_also_behind_a_colon(tmp_path: Path) -> None:
    script = tmp_path / "c"
    script.write_text((await ctl("completion", "bash")).out)
    names = "llama qwen:8b qwen:32b"
    assert await completed(script, "use", "ll", names=names) == ["llama"]
    assert await completed(script, "explain", "qwen:", names=names) == ["8b", "32b"]
    assert await completed(script, "hold", "ll", names=names) == []


async def test_the_names_for_completions_are_such_that_no_shell_runs_them(make_router: MakeRouter) -> None:
    """compgen expands its words."""
    router = await make_router(aliases={"fast:8b": "a", "$(touch owned)": "a", "x y": "a"})
    ended = await ctl("--url", router.url, "completion", "names")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.split() == ["a", "b", "fast:8b"]
    nobody = await ctl("--url", "http://127.0.0.1:9", "completion", "names")
    assert (nobody.code, nobody.out, nobody.err) == (0, "", "")


def test_names_of_engines_are_text_not_orders() -> None:
    lines = show.status({"slots": [{"slot": "\x1b[2Jevil\n", "phase": "ready", "models": ["\x07"]}]})
    assert not any(c in line for line in lines for c in "\x1b\x07\n")


def test_it_runs_as_a_command_of_its_own() -> None:
    argv = [sys.executable, "-m", "enginerouter.cli.routerctl", "--help"]
    said = subprocess.run(argv, env={"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, timeout=30, check=True)
    assert said.stdout.startswith("usage: routerctl")
