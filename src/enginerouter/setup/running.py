"""A process that runs, read so that it can be started again: command, folder, environment, and who keeps it.

Everything here blocks: call it in a thread. What cannot be read is said (`doubt`), never guessed.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Final

import psutil

from enginerouter.engines import ports
from enginerouter.engines.proctree import MARKER
from enginerouter.engines.systemctl import Scope
from enginerouter.setup.recognise import PARENTS, command_kind

# Variables that change what an engine does. The others belong to whoever started it.
_MATTERS: Final = (
    *("CUDA_", "NVIDIA_", "HIP_", "ROCR_", "HSA_", "AMD_", "GPU_", "ONEAPI_", "SYCL_", "VK_", "GGML_", "LLAMA_"),
    *("VLLM_", "SGLANG_", "SGL_", "MLX_", "MAX_", "MODULAR_", "HF_", "HUGGING", "TRANSFORMERS_", "TORCH", "PYTORCH_"),
    *("TRITON_", "NCCL_", "OMP_", "MKL_", "LD_", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX"),
    *("LOCALAI_", "KOBOLD", "TABBY", "RAMALAMA", "XDG_CACHE_HOME"),
)
_CONTAINER: Final = re.compile(r"(?:docker|libpod|cri-containerd)[-/]([0-9a-f]{64})")
_SECRET: Final = re.compile(r"key|token|secret|password", re.IGNORECASE)
_HIDDEN: Final = "***"


@dataclass(frozen=True, slots=True)
class Running:
    """`argv` can be started again as it is, from `cwd` with `env` added. Empty: `doubt` says why it is not known."""

    pid: int
    argv: tuple[str, ...] = ()
    cwd: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    doubt: str = ""
    # The systemd unit whose control group it is in, and the container.
    unit: str = ""
    scope: Scope = "system"
    container: str = ""
    # A program that started it and will again (`ollama`, `llama-swap`).
    parent: str = ""
    is_routers: bool = False

    @property
    def api_key(self) -> str:
        """The key it was told to ask for."""
        for flag, value in zip(self.argv, (*self.argv[1:], ""), strict=True):
            name, equals, inner = flag.partition("=")
            if name == "--api-key":
                return (inner if equals else value).partition(",")[0]
        return next(
            (self.env[name] for name in ("LLAMA_API_KEY", "LLAMA_ARG_API_KEY", "VLLM_API_KEY") if name in self.env), ""
        )

    def shown(self) -> str:
        """The command for people: what stands behind a flag for a key is hidden."""
        return " ".join(_shown(self.argv))


def _shown(argv: Sequence[str]) -> Iterator[str]:
    hides = False
    for word in argv:
        flag, equals, _ = word.partition("=")
        if hides:
            yield _HIDDEN
            hides = False
        elif word.startswith("-") and _SECRET.search(flag) and not flag.endswith("-file"):
            yield f"{flag}={_HIDDEN}" if equals else word
            hides = not equals
        else:
            yield word


def running_at(host: str, port: int) -> Running | None:
    """Who listens there; None where nobody does."""
    holder = ports.holder_of(host, port)
    if holder is None:
        return None
    if not holder.pids:
        return Running(0, doubt="its process cannot be seen: it is another user's, or in a container")
    return read(front_of(holder.pids))


def front_of(pids: Collection[int]) -> int:
    """Of several that share a socket, the one that the others descend from."""
    for pid in sorted(pids):
        try:
            parents = {parent.pid for parent in psutil.Process(pid).parents()}
        except psutil.Error:
            continue
        if not parents & set(pids):
            return pid
    return min(pids)


def engine_ports() -> set[int]:
    """Where processes listen whose commands are engines', in any place and on any port, as far as we may look."""
    found: set[int] = set()
    for process in psutil.process_iter():
        try:
            argv = process.cmdline()
            if not argv or command_kind(argv) is None:
                continue
            found |= {c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        except (psutil.Error, OSError):
            continue
    return found


def read(pid: int) -> Running:
    try:
        process = psutil.Process(pid)
        argv = process.cmdline()
        exe = _quietly(process.exe)
        folder = _quietly(process.cwd)
        environ = process.environ()
        parent = _parent_of(process)
    except (psutil.Error, OSError):
        # As this user it could not be started with what it was given, either.
        return Running(pid, doubt="its command line may not be read: it is another user's process")
    membership = _membership(pid)
    container = _CONTAINER.search(membership)
    unit, scope = unit_in(membership)
    cwd = Path(folder) if folder and Path(folder).is_dir() else None
    program, doubt = program_of(argv, exe, cwd, environ.get("PATH", os.defpath))
    env = {name: value for name, value in sorted(environ.items()) if name.startswith(_MATTERS)}
    return Running(
        pid,
        () if doubt else (program, *argv[1:]),
        cwd,
        env,
        doubt,
        unit="" if container else unit,
        scope=scope,
        container=container[1][:12] if container else "",
        parent=parent,
        is_routers=MARKER in environ,
    )


def program_of(argv: Sequence[str], exe: str, cwd: Path | None, path: str) -> tuple[str, str]:
    """The program as it can be found again from anywhere, and why it cannot be. One of the two is empty.

    Not simply the executable: behind `/venv/bin/python` that is the system's Python, without the environment.
    """
    if not argv or not argv[0]:
        return "", "its command line is empty"
    name = argv[0]
    if os.path.isabs(name):
        if os.access(name, os.X_OK):
            return name, ""
    elif os.sep in name:
        if cwd is not None and os.access(cwd / name, os.X_OK):
            return os.path.normpath(cwd / name), ""
    elif (found := shutil.which(name, path=path)) is not None:
        return found, ""
    # A program may have been moved, or renamed itself ("vllm: worker"): then the rest of the words is no command.
    if exe and os.access(exe, os.X_OK) and PurePath(exe).name == PurePath(name).name:
        return exe, ""
    return "", f"it renamed itself to {name[:60]!r}, so that its command line is lost"


def unit_in(membership: str) -> tuple[str, Scope]:
    """The service whose control group a text of /proc/PID/cgroup names, and whose manager runs it; "" if there is none.

    Sessions and what a terminal starts are scopes, not services.
    """
    for line in membership.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers not in ("", "name=systemd"):
            continue
        steps = [step for step in path.split("/") if step]
        services = [n for n, step in enumerate(steps) if step.endswith(".service")]
        if not services or any(step.endswith(".scope") for step in steps[services[-1] :]):
            continue
        name = steps[services[-1]]
        if name.startswith("user@"):
            continue
        is_users = any(step.startswith("user@") for step in steps[: services[-1]])
        return name, "user" if is_users else "system"
    return "", "system"


def _parent_of(process: psutil.Process) -> str:
    for parent in process.parents():
        try:
            kind = command_kind(parent.cmdline())
        except psutil.Error:
            continue
        if kind in PARENTS:
            return kind or ""
    return ""


def _quietly(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except (psutil.Error, OSError):
        return ""


def _membership(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return ""
