"""Why an engine ended, in words: its exit status, and what the last lines of its log are known to mean.

The phrases are those that llama.cpp, vLLM, SGLang, KoboldCpp, Ollama's runner and plain Python programs print.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cause:
    """`code` is stable, for programs; `meaning` is one sentence for everybody, with what to do.

    `of_profile` is that sentence for an engine whose command a profile makes; "" where it is the same.
    """

    code: str
    meaning: str
    phrases: re.Pattern[str]
    of_profile: str = ""


def _cause(code: str, meaning: str, *phrases: str, of_profile: str = "") -> Cause:
    return Cause(code, meaning, re.compile("|".join(phrases), re.IGNORECASE), of_profile)


OUT_OF_MEMORY = _cause(
    "out_of_memory",
    "it ran out of memory: give it a smaller model or context, or free memory that other programs hold",
    r"(?<!device )out of (device )?memory",
    r"OutOfMemoryError",
    r"(cuda|hip)Malloc\w* failed",
    r"unable to allocate \S+ buffer",
    r"failed to allocate (buffer|compute|Metal|\S+ bytes|memory)",
    r"Device memory allocation of size .* failed",
    r"memory allocation failed|allocation failed: .*memory",
    r"(not enough|insufficient) (free |available |GPU |device )?memory",
    r"vk_?error_?out_?of_?device_?memory",
    r"Free memory on device .* is less than",
    r"No available memory for the cache blocks",
    r"larger than the available KV cache memory",
    r"Cannot allocate memory",
    r"^MemoryError\b",
    r"std::bad_alloc",
)
# In this order: a run out of memory also prints CUDA errors, and all of them end in `failed to load model`.
CAUSES = (
    OUT_OF_MEMORY,
    _cause(
        "port_in_use",
        "its port is already in use: end the program that listens there, or give the engine another port",
        r"couldn't bind HTTP server socket",
        r"Address already in use",
        r"\[Errno (98|48)\]",
        r"WinError 10048",
        r"port \d+ is (already )?in use",
        r"EADDRINUSE",
        r"port is already allocated",
    ),
    _cause(
        "bad_flag",
        "it does not know a flag of its command line, or one lacks its value: correct `start_cmd`",
        r"error: invalid argument:",
        r"error while handling argument",
        r"unrecognized (arguments|option)",
        r"the argument has been removed",
        r"the following arguments are required",
        r"expected value for argument",
        r"error: argument .*: (invalid|expected)",
        r"(unknown|unrecognized) (option|flag|argument)",
        of_profile="it does not know a flag of its command line, or one lacks its value or has one too many: correct "
        "the profile's `flags` (a bare switch is written `jinja: null`, for `jinja: on` becomes `--jinja on`; one dash "
        "is written out, `-ngl: 99`, for `ngl: 99` becomes `--ngl 99`) or `start_cmd`",
    ),
    _cause(
        "cuda_error",
        "the GPU or its driver reported an error: look at the driver (`nvidia-smi`) and the engine's log",
        r"CUDA error",
        r"\bcudaError\w*",
        r"CUDA driver version is insufficient",
        r"no CUDA-capable device",
        r"cuBLAS\w* error|CUBLAS_STATUS_\w+",
        r"ggml_cuda_\w+: .*(failed|error)",
        r"HIP error|ROCm error",
        r"NVRM: Xid",
    ),
    _cause(
        "file_missing",
        "a file it needs is missing or unreadable: check the paths in `start_cmd`",
        r"No such file or directory",
        r"FileNotFoundError",
        r"failed to open GGUF file",
        r"unable to open (the )?(model|file)",
        r"(model|file) .*(does not exist|not found)",
        r"failed to load model",
        r"error loading model",
        of_profile="a file it needs is missing or unreadable: check the profile's `model` and the paths in its flags",
    ),
)

# Printed by engines that go on and serve.
_BENIGN = re.compile(r"failed to fit params to free device memory|retrying without pipeline parallelism", re.I)


def recognise(lines: Sequence[str], exit_status: int | None) -> Cause | None:
    """The cause named in the log of an engine that failed. One that ended with status 0 failed at nothing."""
    if exit_status == 0:
        return None
    telling = [line for line in lines if not _BENIGN.search(line)]
    for cause in CAUSES:
        if any(cause.phrases.search(line) for line in telling):
            return cause
    return None


def exit_in_words(status: int | None) -> str:
    """`status` as `subprocess` has it: negative for a signal, None where nobody could tell."""
    if status is None:
        return "ended"
    if status == 0:
        return "ended with status 0, unasked"
    if status > 0:
        inside = f" – in a container or shell: {_signal(status - 128)}" if 128 < status < 160 else ""
        return f"exited with status {status}{inside}"
    return f"was {_signal(-status)}"


def _signal(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"killed by signal {number}"
    often = {
        "SIGKILL": "; often the kernel's out-of-memory killer",
        "SIGSEGV": "; it crashed",
        "SIGABRT": "; it gave up on an internal or GPU error",
        "SIGILL": "; built for another processor?",
    }.get(name, "")
    return f"killed by signal {number} ({name}{often})"
