"""What a log is taken to mean. The lines are those that the engines print."""

from __future__ import annotations

import pytest

from enginerouter.engines.causes import exit_in_words, recognise


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory", "out_of_memory"),
        ("llama_model_load: error loading model: unable to allocate CUDA0 buffer", "out_of_memory"),
        ("llama_kv_cache: failed to allocate buffer for kv cache", "out_of_memory"),
        ("graph_reserve: failed to allocate compute pp buffers", "out_of_memory"),
        ("failed to allocate Metal buffer of 900 MiB (out of memory)", "out_of_memory"),
        ("Device memory allocation of size 1073741824 failed", "out_of_memory"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "out_of_memory"),
        ("ValueError: Free memory on device (3.1/24 GiB) is less than desired", "out_of_memory"),
        ("ValueError: No available memory for the cache blocks. Try increasing", "out_of_memory"),
        ("RuntimeError: Not enough memory. Please try to increase --mem-fraction", "out_of_memory"),
        ("MemoryError", "out_of_memory"),
        ("srv start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8080", "port_in_use"),
        ("OSError: [Errno 98] Address already in use", "port_in_use"),
        ("error: [Errno 48] error while attempting to bind on address", "port_in_use"),
        ("Bind for 0.0.0.0:8000 failed: port is already allocated", "port_in_use"),
        ("error: invalid argument: --frobnicate", "bad_flag"),
        ('error while handling argument "--flash-attn": error: unknown value', "bad_flag"),
        ("vllm: error: unrecognized arguments: --foo", "bad_flag"),
        ("the argument has been removed. use --spec-draft-n-max", "bad_flag"),
        ("launch_server.py: error: the following arguments are required: --model-path", "bad_flag"),
        ("gguf_init_from_file: failed to open GGUF file '/m/x.gguf'", "file_missing"),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'x'", "file_missing"),
        ("CUDA error: no kernel image is available for execution on the device", "cuda_error"),
        ("RuntimeError: CUDA driver version is insufficient for CUDA runtime version", "cuda_error"),
    ],
)
def test_the_words_of_engines_are_recognised(line: str, code: str) -> None:
    found = recognise(["loading", line, "main: exiting due to model loading error"], 1)
    assert found is not None
    assert found.code == code


def test_the_deeper_cause_wins_over_what_follows_from_it() -> None:
    lines = ["cudaMalloc failed: out of memory", "CUDA error", "error: failed to load model '/m/x.gguf'"]
    found = recognise(lines, 1)
    assert found is not None
    assert found.code == "out_of_memory"
    found = recognise(lines[1:], 1)
    assert found is not None
    assert found.code == "cuda_error"


@pytest.mark.parametrize(
    "line",
    [
        "common_init: failed to fit params to free device memory: continuing",
        "llama_context: allocation failed, out of memory; retrying without pipeline parallelism",
        "listening on http://127.0.0.1:8080",
    ],
)
def test_what_engines_survive_is_no_cause(line: str) -> None:
    assert recognise([line], 1) is None


def test_an_exit_with_status_0_failed_at_nothing() -> None:
    assert recognise(["out of memory"], 0) is None


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (None, "ended"),
        (0, "ended with status 0, unasked"),
        (1, "exited with status 1"),
        (-9, "was killed by signal 9 (SIGKILL; often the kernel's out-of-memory killer)"),
        (-15, "was killed by signal 15 (SIGTERM)"),
        (-64, "was killed by signal 64 (SIGRTMAX)"),
        (-99, "was killed by signal 99"),
    ],
)
def test_an_exit_is_said_in_words(status: int | None, words: str) -> None:
    assert exit_in_words(status) == words


def test_the_status_of_a_shell_or_container_names_the_signal() -> None:
    assert "SIGKILL" in exit_in_words(137)
