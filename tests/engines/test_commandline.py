"""Which models a command line names, in the spellings that engines' manuals use."""

from __future__ import annotations

import shlex

import pytest

from enginerouter.engines.commandline import model_ids

COMMANDS = [
    ("llama-server -m /models/qwen3.gguf --port 8080", ["qwen3.gguf"]),
    ("llama-server --model=/models/Qwen3.GGUF", ["Qwen3.GGUF"]),
    ("llama-server -m /models/q.gguf --alias qwen,qwen-30b", ["qwen", "qwen-30b", "q.gguf"]),
    ("llama-server -m /models/q.gguf -a qwen", ["qwen", "q.gguf"]),
    ("llama-server -hf unsloth/Qwen3-GGUF:Q4_K_M", ["unsloth/Qwen3-GGUF:Q4_K_M"]),
    ("vllm serve Qwen/Qwen3-32B --port 8000", ["Qwen/Qwen3-32B"]),
    ("vllm serve --port 8000 --enforce-eager Qwen/Qwen3-32B", ["Qwen/Qwen3-32B"]),
    ("/venv/bin/python /venv/bin/vllm serve Qwen/Qwen3-32B --served-model-name qwen big --port 1", ["qwen", "big"]),
    ("vllm serve Qwen/Qwen3-32B --served-model-name=qwen", ["qwen"]),
    ("python3 -m vllm.entrypoints.openai.api_server --model Qwen/Q", ["Qwen/Q"]),
    ("python -m sglang.launch_server --model-path /models/glm --served-model-name glm", ["glm"]),
    ("python3.11 -m mlx_lm server --model mlx-community/Q", ["mlx-community/Q"]),
    ("local-ai run phi-2 --address :8080", ["phi-2"]),
    ("ramalama serve --port 8090 -d granite", ["granite"]),
    ("docker run --rm -m 16g vllm/vllm-openai:v0.10 --model Qwen/Q", ["Qwen/Q"]),
    ("bash -c 'exec llama-server -m /x/a.gguf --alias a'", ["a", "a.gguf"]),
    ("bash -c 'unclosed \"'", []),
    ("llama-server -m .gguf", []),
    ("llama-server -m", []),
    ("llama-server -m --port 1", []),
    ("llama-server --model {model} --alias {id}", []),
    ("my-engine {port}", []),
]


@pytest.mark.parametrize(("command", "ids"), COMMANDS, ids=[c for c, _ in COMMANDS])
def test_a_command_line_names_its_models(command: str, ids: list[str]) -> None:
    # The quote that is not closed is inside of the script, where the shell would meet it.
    words = shlex.split(command)
    assert list(model_ids(words)) == ids


def test_no_command_names_no_model() -> None:
    assert model_ids([]) == ()
