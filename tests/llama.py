"""A real llama-server and models for it, for tests marked `real`.

    from llama import ONE_THREAD, find_llama_server, model_file, no_mmap_flags, running_llama_server

Both are kept in ${ENGINEROUTER_CACHE:-~/.cache/enginerouter-tests} from one run to the next.
Where no llama-server can be had, `need_llama_server()` skips the test – or fails it when
ENGINEROUTER_NEED_LLAMA=1 is set, as .ci/run does: there, a skip would hide that nothing was tested.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

FETCH = Path(__file__).with_name("fetch-llama-server")

# For every llama-server of a test. Its threads wait for each other by spinning: with as many as there are cores,
# and anything else to do on the machine, 3,000 tokens of the tiny model take 30 to 300 s instead of 2.
ONE_THREAD = ["--threads", "1"]


def cache_folder() -> Path:
    folder = Path(os.environ.get("ENGINEROUTER_CACHE") or Path.home() / ".cache" / "enginerouter-tests")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def find_llama_server() -> str | None:
    """From $LLAMA_SERVER, PATH or tests/fetch-llama-server; None, and why on stderr, if there is none."""
    for known in (os.environ.get("LLAMA_SERVER"), shutil.which("llama-server")):
        if known:
            return known
    try:
        fetched = subprocess.run([str(FETCH)], capture_output=True, text=True, timeout=600, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"tests/fetch-llama-server: {error}", file=sys.stderr)
        return None
    if fetched.returncode != 0:
        print(fetched.stderr, file=sys.stderr)
        return None
    return fetched.stdout.strip()


def need_llama_server() -> str:
    server = find_llama_server()
    if server is not None:
        return server
    if os.environ.get("ENGINEROUTER_NEED_LLAMA") == "1":
        pytest.fail("no llama-server, and tests/fetch-llama-server could not get one (its words are above)")
    pytest.skip("no llama-server here; tests/fetch-llama-server says why")


def model_file(name: str, *, size: Literal["tiny"] | int = "tiny") -> Path:
    """A cached model that answers in words made of `name`. `size` is "tiny" (260 kB) or MiB."""
    pytest.importorskip("gguf", reason="needs the `real` extra (gguf, numpy)")
    import make_gguf

    source = Path(make_gguf.__file__).stat()
    folder = cache_folder() / "models"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{size}.gguf"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists() or path.stat().st_mtime < source.st_mtime:
            make_gguf.make_gguf(path, size=size, name=name)
    return path


@functools.cache
def help_text(llama_server: str) -> str:
    shown = subprocess.run([llama_server, "--help"], capture_output=True, text=True, timeout=30, check=True)
    return shown.stdout + shown.stderr


def no_mmap_flags(llama_server: str) -> list[str]:
    """The flags with which this build holds a model as memory of its own instead of mapping the file.

    `--load-mode none` since build 11669; before it `--no-mmap`, which newer builds refuse at start.
    """
    return ["--load-mode", "none"] if "--load-mode" in help_text(llama_server) else ["--no-mmap"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def running_llama_server(
    model: Path, *flags: str, timeout_s: float = 60
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A llama-server with `model` that is ready; gives its base URL and process, and ends it."""
    server, port = need_llama_server(), free_port()
    argv = [server, "-m", str(model), "--alias", model.name.split("-")[0], "--port", str(port), *ONE_THREAD, *flags]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_ready(url, process, timeout_s)
            yield url, process
        finally:
            process.kill()


def _wait_ready(url: str, process: subprocess.Popen[bytes], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"llama-server ended with {process.returncode} before it was ready: {process.args!r}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):  # refused at first, then 503 while it loads
            time.sleep(0.02)
    raise RuntimeError(f"llama-server was not ready within {timeout_s:g} s: {process.args!r}")
