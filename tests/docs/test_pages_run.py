"""The commands on the pages are run, as they stand there, by a reader with a home of their own and a router that runs.

The router is at another port than 8077, which alone is replaced in a block. What cannot be run here is in NEEDS, with
the reason; `test_pages.py` reads those, too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from doc_pages import REPOSITORY, Block, all_blocks

from enginerouter.config.model import Config
from llama import free_port

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or shutil.which("curl") is None, reason="needs bash and curl"
)
SYSTEMD = "changes the user's systemd; tests/real/test_real_install.py and test_real_service.py do it"
INDEX = "needs a package index; tests/real/test_real_install.py does it"
ENGINES = "needs engines that run here; tests/real/test_real_setup.py does it"
MACHINES = "needs several machines"
SERVES = "serves until Ctrl-C; the router of these tests was started so"
# Page and first line of a block → why it is not run here.
NEEDS = {
    "CONTRIBUTING.md: tests/run": "these tests are run by it",
    "README.md: ./install.sh": INDEX,
    "README.md: ./install.sh --demo": f"{INDEX[:21]}; tests/service/test_install.py does it",
    "README.md: python3 -m venv .venv && .venv/bin/pip install .": INDEX,
    "README.md: tests/run": "these tests are run by it",
    "docs/how-to/containers.md: docker compose -f deploy/docker/compose.yaml up -d": "needs Docker",
    "docs/how-to/many-boxes.md: LISTEN=0.0.0.0:8077 BOX_A=192.168.1.10:8077 BOX_B=192.168.1.11:8077 "
    "haproxy -c -f deploy/haproxy/haproxy.cfg": "needs HAProxy; tests/real/test_real_boxes.py runs that file",
    "docs/how-to/one-model-many-machines.md: ggml-rpc-server --host 192.168.2.11 --port 50052": MACHINES,
    "docs/how-to/one-model-many-machines.md: ray start --head --port=6379": MACHINES,
    "docs/how-to/service.md: git pull && ./install.sh --yes": INDEX,
    "docs/how-to/service.md: mkdir -p ~/.config/systemd/user": SYSTEMD,
    "docs/how-to/service.md: enginerouter unit --config ~/.config/enginerouter/config.yaml > "
    "~/.config/systemd/user/enginerouter.service": SYSTEMD,
    "docs/how-to/service.md: systemctl --user status enginerouter": SYSTEMD,
    "docs/how-to/set-up.md: enginerouter init --detect-only": ENGINES,
    "docs/how-to/set-up.md: enginerouter init --detect-only --json": ENGINES,
    "docs/how-to/set-up.md: enginerouter init --stop-running": ENGINES,
    "docs/start.md: ./install.sh --demo --once": f"{INDEX[:21]}; tests/service/test_install.py does it",
    "docs/start.md: ./install.sh --dry-run": INDEX,
    "docs/start.md: ./install.sh --uninstall": INDEX,
    "docs/start.md: enginerouter": SERVES,
    "docs/start.md: enginerouter init --detect-only": ENGINES,
    "docs/start.md: python3 -m venv .venv && .venv/bin/pip install .": INDEX,
    "deploy/docker/README.md: docker compose -f deploy/docker/compose.yaml up -d": "needs Docker",
}
# They go on until Ctrl-C: enough that they say something and end well.
ENDLESS = {"docs/start.md: routerctl watch"}
# Last lines that would serve, in blocks whose other lines are run.
SERVING = "enginerouter\n"

BLOCKS = all_blocks("bash")
RUN = [block for block in BLOCKS if block.name not in NEEDS]


class Reader:
    """A home, a checkout, the two commands on PATH, and a router whose engines are the demo's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.home = folder / "home"
        self.checkout = folder / "enginerouter"
        self.bin = folder / "bin"
        for made in (self.home, self.checkout, self.bin):
            made.mkdir()
        for name in ("deploy", "presets", "install.sh", "config.example.yaml", "src", "pyproject.toml"):
            (self.checkout / name).symlink_to(REPOSITORY / name)
        for name, module in (("enginerouter", "enginerouter"), ("routerctl", "enginerouter.cli.routerctl")):
            self._command(name, f'exec "{sys.executable}" -m {module} "$@"')
        # An answer that is an error has to end the block.
        self._command("curl", f'exec "{shutil.which("curl")}" --fail-with-body --silent --show-error "$@"')
        self.config = self.checkout / "config.yaml"
        self.config.write_text(self.configuration())
        # As the installer leaves it.
        (self.home / ".config/enginerouter").mkdir(parents=True)
        shutil.copy(self.config, self.home / ".config/enginerouter/config.yaml")
        (self.checkout / "llama-swap.yaml").write_text(
            "models: {one: {cmd: 'llama-server -m /models/one.gguf --port ${PORT}', ttl: 300}}\n"
        )
        (self.checkout / "aliases.yaml").write_text(
            "default: fast\naliases: {fast: {chain: [groq/llama-3.1-8b-instant]}}\n"
        )
        (self.checkout / "profiles.yaml").write_text(
            "profiles: {small: {model: small.gguf, flags: {ctx-size: 8192}}}\n"
        )
        self.env = {
            "HOME": str(self.home),
            "PATH": f"{self.bin}:/usr/local/bin:/usr/bin:/bin:/usr/sbin",
            "PYTHONPATH": str(REPOSITORY / "src"),
            "PYTHON": sys.executable,
        }
        self.router = subprocess.Popen(
            [self.bin / "enginerouter"],
            cwd=self.checkout,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def _command(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def configuration(self) -> str:
        def demo(name: str) -> dict[str, object]:
            module = [sys.executable, "-m", "enginerouter.demo.engine", "--port", "{port}", "--name", name]
            return {
                "type": "generic_process",
                "start_cmd": [*module, "--memory-mib", "16", "--load-s", "0.05", "--tokens-per-s", "500"],
            }

        engines: dict[str, object] = {name: demo(name) for name in ("llama", "qwen", "coder")}
        engines["openrouter"] = {"type": "remote", "base_url": "http://127.0.0.1:9/v1"}
        settings = {
            "port": self.port,
            "memory_source": "meminfo",
            "swap_min_residency_s": 0,
            "engines": engines,
            "aliases": {"assistant": {"chain": ["qwen/qwen", "openrouter/qwen"]}},
        }
        return json.dumps(settings)

    def script(self, block: Block) -> str:
        text = block.text.removesuffix(SERVING) if block.text != SERVING else block.text
        # Lines that write a configuration are alternatives, meant for somebody who has none.
        text = re.sub(r"^(?=enginerouter (init|import) )", "rm -f config.yaml\n", text, flags=re.MULTILINE)
        return text.replace("127.0.0.1:8077", f"127.0.0.1:{self.port}")

    def start(self, block: Block) -> subprocess.Popen[str]:
        self.config.write_text(self.configuration())
        return subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", self.script(block)],
            cwd=self.checkout,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    reader = Reader(tmp_path_factory.mktemp("reader"))
    assert reader.router.stdout is not None
    assert any(b"listening" in line for line in reader.router.stdout), "the router is up"
    yield reader
    reader.router.send_signal(signal.SIGINT)
    reader.router.communicate(timeout=30)


@pytest.mark.parametrize("block", [b for b in RUN if b.name not in ENDLESS], ids=lambda block: block.name)
def test_a_block_runs_as_it_stands_there(block: Block, reader: Reader) -> None:
    process = reader.start(block)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said


@pytest.mark.parametrize("block", [b for b in RUN if b.name in ENDLESS], ids=lambda block: block.name)
def test_what_goes_on_until_ctrl_c_says_something_and_ends_well(block: Block, reader: Reader) -> None:
    process = reader.start(block)
    assert process.stdout is not None
    assert process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode in (0, 130)


def test_what_is_not_run_stands_on_a_page() -> None:
    names = {block.name for block in BLOCKS}
    assert set(NEEDS) | ENDLESS <= names
    assert len(RUN) > len(NEEDS), "most are run"


def test_the_port_that_is_replaced_is_the_default() -> None:
    assert Config().port == 8077
