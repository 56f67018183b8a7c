"""A router as a user starts it: a process of its own, a config file, a log file – before real engines.

What it does is read where a user reads it: in the answers, the log files, /status, /metrics and the process table.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any, Literal, TypeVar

import openai
import psutil

import enginerouter
from enginerouter.swap.memory import Meminfo
from llama import ONE_THREAD, free_port, model_file, need_llama_server, no_mmap_flags

MIB = 1024 * 1024
GIB = 1024 * MIB
T = TypeVar("T")
# Every process below a router of a test carries this variable with the router's folder.
MARK = "ENGINEROUTER_REAL_TEST"
SETTLED = re.compile(r"memory of (\S+): (\w+) after ([\d.]+) s \(([\d.]+) GiB came back, ([\d.]+) GiB was held\)")


def until(probe: Callable[[], T], what: str, *, timeout_s: float = 20, every_s: float = 0.05) -> T:
    """Ask again and again until the answer is true; that answer."""
    deadline = time.monotonic() + timeout_s
    while not (found := probe()):
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for: {what}"
        time.sleep(every_s)
    return found


def llama(
    name: str, *flags: str, size: Literal["tiny"] | int = "tiny", is_mapped: bool = True, context: int = 2048
) -> dict[str, Any]:
    """The configuration of a llama-server whose model says its own name in every word."""
    server = need_llama_server()
    command = [server, "-m", str(model_file(name, size=size)), "--alias", name, "--port", "{port}", *ONE_THREAD]
    command += ["-c", str(context), "--no-warmup", *([] if is_mapped else no_mmap_flags(server)), *flags]
    return {"type": "generic_process", "start_cmd": command}


def slow_llama(name: str = "slow") -> dict[str, Any]:
    """Some 80 words a second on a small machine: hundreds of them are seconds of talk."""
    return llama(name, "-np", "1", size=256, context=4096)


def demo_engine(name: str, *, memory_mib: int = 16, load_s: float = 0.1) -> list[str]:
    module = [sys.executable, "-m", "enginerouter.demo.engine", "--port", "{port}", "--name", name]
    return [*module, "--memory-mib", str(memory_mib), "--load-s", str(load_s)]


@dataclass(frozen=True)
class RawAnswer:
    """An answer without an SDK in between."""

    status: int
    headers: Message
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


def send(url: str, body: dict[str, Any] | None = None) -> RawAnswer:
    """POST a JSON body, or GET."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return RawAnswer(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return RawAnswer(error.code, error.headers, error.read())


@dataclass(frozen=True)
class Settle:
    slot: str
    verdict: str
    seconds: float
    came_back: float
    held: float


class RealRouter:
    """`python -m enginerouter --config FILE`, again and again in one folder."""

    def __init__(self, config: Path, port: int) -> None:
        self.folder = config.parent
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._config = config
        self._stderr = self.folder / "stderr.log"
        self.process: subprocess.Popen[bytes] | None = None

    @classmethod
    def of(cls, folder: Path, engines: dict[str, Any], settings: dict[str, Any]) -> RealRouter:
        """With a configuration made of these, on a free port."""
        config, port = folder / "config.yaml", free_port()
        # These engines hold the host's memory, also where there is a card. JSON is YAML.
        base = {"port": port, "memory_source": Meminfo.name, "engines": engines}
        config.write_text(json.dumps(base | settings, indent=1))
        return cls(config, port)

    # --- its life

    def start(self) -> None:
        assert self.process is None
        source = str(Path(enginerouter.__file__).parents[1])
        outer = os.environ.get("PYTHONPATH")
        env = {
            **os.environ,
            MARK: str(self.folder),
            "PYTHONPATH": os.pathsep.join([source, outer] if outer else [source]),
        }
        argv = [sys.executable, "-m", "enginerouter", "--config", str(self._config)]
        with self._stderr.open("ab") as stderr:
            self.process = subprocess.Popen(argv, cwd=self.folder, env=env, stderr=stderr, start_new_session=True)
        until(self._is_up, "the router answers /health")

    def _is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the router ended: {self._stderr.read_text()}"
        with contextlib.suppress(OSError):
            self.get("/health")
            return True
        return False

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        assert self.process is not None
        self.process.terminate()
        status = self.process.wait(40)
        self.process = None
        return status

    def kill(self) -> None:
        """As hard as it gets: nothing is saved, nothing is told to anybody."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def end(self) -> None:
        """The end of a test: an orderly stop, after which nothing that the router launched may be left."""
        status = self.stop() if self.process is not None else 0
        left = [p for p in psutil.process_iter() if self._is_mine(p)]
        for process in left:
            process.kill()
        assert status == 0, f"the router exited with {status}: {self._stderr.read_text()[-2000:]}"
        assert left == [], "a process outlived its router"
        assert "Traceback" not in self._stderr.read_text()

    def _is_mine(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error, OSError):
            return process.environ().get(MARK) == str(self.folder) and process.status() != psutil.STATUS_ZOMBIE
        return False

    # --- its clients

    @contextlib.contextmanager
    def client(self, **options: Any) -> Iterator[openai.OpenAI]:
        given = {"timeout": 60, "max_retries": 0, **options}
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key="sk-none", **given) as client:
            yield client

    def ask(self, model: str, *, words: int = 3) -> str:
        with self.client() as client:
            return said(chat(client, model, words=words))

    def post(self, path: str, body: dict[str, Any]) -> RawAnswer:
        return send(f"{self.url}{path}", body)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=5) as answer:
            text: str = answer.read().decode()
        return text

    # --- what it says of itself

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get("/status"))
        return found

    def slot(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(s for s in self.status()["slots"] if s["slot"] == name)
        return found

    def phase(self, name: str) -> str:
        return str(self.slot(name)["phase"])

    def swap_seconds(self, target: str) -> dict[str, float]:
        """The steps of the last swap to a slot."""
        found: dict[str, float] = self.status()["last_swaps"][target]["seconds"]
        return found

    def metric(self, sample: str) -> float:
        """One sample by its whole name and labels, without the prefix; 0 if it is not there."""
        for line in self.get("/metrics").splitlines():
            name, _, value = line.rpartition(" ")
            if name == f"enginerouter_{sample}":
                return float(value)
        return 0.0

    def log(self) -> str:
        path = self.folder / "logs" / "router.log"
        return path.read_text() if path.exists() else ""

    def wait_log(self, text: str, *, timeout_s: float = 20) -> str:
        """The first line with this text, as soon as it is there (lines are written four times a second)."""

        def found() -> str | None:
            return next((line for line in self.log().splitlines() if text in line), None)

        line = until(found, f"{text!r} in the log", timeout_s=timeout_s)
        assert line is not None
        return line

    def settles(self, at_least: int = 1) -> list[Settle]:
        """All settle waits so far, oldest first, as soon as there are so many."""

        def found() -> list[Settle]:
            return [
                Settle(slot, verdict, float(seconds), float(back), float(held))
                for slot, verdict, seconds, back, held in SETTLED.findall(self.log())
            ]

        until(lambda: len(found()) >= at_least, f"{at_least} settle waits in the log", timeout_s=5)
        return found()

    # --- its engines

    def engine_log(self, name: str) -> Path:
        return self.folder / "logs" / "engines" / f"{name}.log"

    def engine(self, name: str) -> psutil.Process:
        """The process of a running engine, by the name on its command line."""
        found = [p for p in psutil.process_iter() if self._is_mine(p) and self._is_called(p, name)]
        assert len(found) == 1, found
        return found[0]

    @staticmethod
    def _is_called(process: psutil.Process, name: str) -> bool:
        words = process.cmdline()
        return any(a in ("--alias", "--name") and b == name for a, b in itertools.pairwise(words))

    def engine_url(self, name: str) -> str:
        words = self.engine(name).cmdline()
        return f"http://127.0.0.1:{words[words.index('--port') + 1]}"


# What the fixtures `start` and `serve` are: `start(engines, **settings)`, `serve(config, port)`.
Start = Callable[..., RealRouter]
Serve = Callable[[Path, int], RealRouter]


# --- what clients do


HELLO: Any = [{"role": "user", "content": "Hello"}]


def chat(client: openai.OpenAI, model: str, *, words: int = 3) -> Any:
    return client.chat.completions.create(model=model, messages=HELLO, max_tokens=words)


def stream(client: openai.OpenAI, model: str, *, words: int = 3) -> Any:
    return client.chat.completions.create(model=model, messages=HELLO, max_tokens=words, stream=True)


def said(answer: Any) -> str:
    return str(answer.choices[0].message.content)


def pieces(events: Any) -> Iterator[str]:
    """The text of a stream, piece by piece."""
    for event in events:
        if event.choices and event.choices[0].delta.content:
            yield event.choices[0].delta.content


def assert_said_by(name: str, text: str) -> None:
    """Every word is the model's name and a number."""
    words = text.split()
    assert words, "it said nothing"
    assert all(re.fullmatch(rf"{name}\d+", word) for word in words), text


def is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def born_at(process: psutil.Process) -> float:
    """Unix time, exact to 0.01 s; psutil's own figure is off by up to a second."""
    stat = Path(f"/proc/{process.pid}/stat").read_bytes()
    ticks = int(stat[stat.rindex(b")") + 2 :].split()[19])
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age_s


# --- memory


class MemoryWatch:
    """Looks at available memory, and at whether a process lives, a hundred times a second."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        # (unix time, available bytes, does the process live)
        self.looks: list[tuple[float, int, bool]] = []

    def _look(self) -> None:
        while not self._over.is_set():
            self.looks.append((time.time(), Meminfo().available() or 0, not is_gone(self._process)))
            time.sleep(0.01)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def gone_at(self) -> float:
        """When the process was first seen to be gone."""
        return next(at for at, _, lives in self.looks if not lives)

    def available_at(self, moment: float) -> int:
        """The last look before a moment."""
        return [available for at, available, _ in self.looks if at <= moment][-1]


def kill_hard(process: psutil.Process) -> None:
    process.send_signal(signal.SIGKILL)
