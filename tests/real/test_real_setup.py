"""What `init` and `import` write is served: it starts, swaps and stops real engines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from real_kit import Serve, assert_said_by, chat, is_gone, send, until

from enginerouter.cli.main import main
from enginerouter.config.load import load
from llama import ONE_THREAD, free_port, model_file, need_llama_server, running_llama_server
from user_manager import UserManager

pytestmark = pytest.mark.real


def test_init_takes_over_a_running_llama_server(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found, written, said to be in the way, ended by its owner; then started, swapped away and back by the router."""
    config, port = tmp_path / "config.yaml", free_port()
    with (
        running_llama_server(model_file("red"), "-c", "1024") as (red_url, red),
        running_llama_server(model_file("blue"), "-c", "512", "--api-key", "sk-blue") as (blue_url, blue),
    ):
        ports = ",".join(url.rpartition(":")[2] for url in (red_url, blue_url))
        assert main(["init", "--yes", "--config", str(config), "--ports", ports, "--port", str(port)]) == 0
        said = capsys.readouterr().out
        assert f"kill {red.pid}" in said
        assert main(["check", "--config", str(config)]) == 0
        router = serve(config, port)
        # It is not ours: it is neither used nor ended, and who is in the way is said.
        refused = router.post("/v1/chat/completions", {"model": "red", "messages": []})
        assert refused.status == 502
        assert f"process {red.pid}" in refused.error["message"]
        assert red.poll() is None
        for process in (red, blue):
            process.terminate()
            process.wait(20)
        until(lambda: router.post("/admin/reset", {}).status == 200, "the circuits are closed")
        assert_said_by("red", router.ask("red"))
        mine = psutil.Process(int(router.engine("red").pid))
        assert mine.cwd() == str(Path.cwd())
        assert_said_by("blue", router.ask("blue"))
        assert is_gone(mine)
        assert_said_by("red", router.ask("red"))
        models = send(f"{router.url}/v1/models")
        assert b'"context_length": 1024' in models.body
        assert router.stop() == 0


def test_init_ends_what_runs_if_it_is_told_to(tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    config, port = tmp_path / "config.yaml", free_port()
    with running_llama_server(model_file("red")) as (url, red):
        words = ["--ports", url.rpartition(":")[2], "--port", str(port), "--stop-running"]
        # The child is ours to reap; init sees only that it is gone.
        assert main(["init", "--yes", "--config", str(config), *words]) == 0
        assert red.wait(20) == 0
    assert "still runs" not in capsys.readouterr().out
    router = serve(config, port)
    assert_said_by("red", router.ask("red"))
    assert router.stop() == 0


def test_init_finds_the_unit_that_keeps_an_engine_and_the_router_takes_it_over(
    tmp_path: Path, serve: Serve, manager: UserManager
) -> None:
    config, port, engine_port = tmp_path / "config.yaml", free_port(), free_port()
    command = [need_llama_server(), "-m", str(model_file("red")), "--alias", "red", "--port", str(engine_port)]
    unit = manager.unit("llama", *command, *ONE_THREAD, Restart="always")
    manager.systemctl("start", unit)
    until(lambda: is_up(engine_port), "the unit serves")
    assert main(["init", "--yes", "-c", str(config), "--ports", str(engine_port), "--port", str(port)]) == 0
    (engine,) = load(config).config.engines.values()
    assert (engine.type, getattr(engine, "unit", ""), getattr(engine, "scope", "")) == ("systemd_unit", unit, "user")
    before = manager.pid(unit)
    router = serve(config, port)
    assert_said_by("red", router.ask("red"))
    assert manager.pid(unit) == before, "it was taken over as it ran"
    assert router.post("/admin/unload", {}).status == 200
    until(lambda: manager.show(unit, "ActiveState") == "inactive", "the unit is stopped for its memory")


def is_up(port: int) -> bool:
    try:
        return send(f"http://127.0.0.1:{port}/health").status == 200
    except OSError:
        return False


SWAP = """
macros:
  engine: {python} -m enginerouter.demo.engine --port ${{PORT}} --name ${{MODEL_ID}} --load-s 0.1
healthCheckTimeout: 30
models:
  red:
    cmd: |
      # the first
      ${{engine}} \\
        --memory-mib 32
    aliases: [ruby]
    ttl: 600
  blue:
    cmd: ${{engine}} --memory-mib ${{mib}}
    macros: {{mib: 32}}
    useModelName: blue
  small:
    cmd: {python} -m enginerouter.demo.engine --port {fixed} --name small --memory-mib 8 --load-s 0.1
    proxy: http://127.0.0.1:{fixed}
groups:
  beside: {{swap: false, exclusive: false, persistent: true, members: [small]}}
"""


def test_an_imported_llama_swap_file_starts_and_swaps(tmp_path: Path, serve: Serve) -> None:
    theirs, config, port = tmp_path / "llama-swap.yaml", tmp_path / "config.yaml", free_port()
    theirs.write_text(SWAP.format(python=sys.executable, fixed=free_port()))
    assert main(["import", str(theirs), "-o", str(config)]) == 0
    config.write_text(config.read_text().replace("port: 8077", f"port: {port}\nmemory_source: meminfo"))
    router = serve(config, port)
    assert router.ask("ruby")
    red = router.engine("red")
    assert router.ask("small")
    assert (router.phase("red"), router.phase("small")) == ("ready", "ready"), "they may stay together"
    assert router.ask("blue")
    assert is_gone(red)
    assert (router.phase("red"), router.phase("small"), router.phase("blue")) == ("cold", "ready", "ready")
    with router.client() as client:
        assert chat(client, "red").model == "red"


def test_an_imported_manifest_starts_and_switches(tmp_path: Path, serve: Serve) -> None:
    theirs, config, port = tmp_path / "profiles.yaml", tmp_path / "config.yaml", free_port()
    models = {name: model_file(name) for name in ("red", "blue")}
    theirs.write_text(
        "".join(f"{name}: {{model_path: {path}, flags: {{c: 512, threads: 1}}}}\n" for name, path in models.items())
    )
    assert main(["import", str(theirs), "-o", str(config)]) == 0
    # Where this machine keeps it.
    text = config.read_text().replace("[\n      llama-server,", f"[\n      {need_llama_server()},")
    config.write_text(text.replace("port: 8077", f"port: {port}\nmemory_source: meminfo"))
    router = serve(config, port)
    assert_said_by("red", router.ask("red"))
    assert_said_by("blue", router.ask("blue"))


def test_init_from_a_shell_under_a_pipe_finds_an_engine_on_any_port() -> None:
    """Without a list of ports: its command tells that it is one."""
    with running_llama_server(model_file("red")) as (url, _):
        argv = [sys.executable, "-m", "enginerouter", "init", "--detect-only", "--json"]
        said = subprocess.run(argv, input="", capture_output=True, text=True, timeout=60, check=True)
        assert url in said.stdout
