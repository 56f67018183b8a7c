"""What catalogues say of a real llama-server: before it ever ran, while it runs, and after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from real_kit import RealRouter, Start, until

from llama import ONE_THREAD, model_file, need_llama_server

pytestmark = pytest.mark.real


def server(*flags: str) -> dict[str, Any]:
    command = [need_llama_server(), "-m", str(model_file("red")), "--alias", "red", "--port", "{port}", *flags]
    return {"type": "generic_process", "start_cmd": [*command, "--no-warmup", *ONE_THREAD]}


def entry(router: RealRouter) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(router.get("/v1/models/red"))
    return found


def length(router: RealRouter) -> int | None:
    return entry(router).get("context_length")


def test_the_file_says_what_the_command_line_does_not(start: Start) -> None:
    router = start({"red": server()})
    said = json.loads(router.post("/api/show", {"model": "red"}).body)
    assert (said["model_info"]["llama.context_length"], said["details"]["quantization_level"]) == (8192, "F16")
    assert said["model_info"]["llama.embedding_length"] == 64
    assert json.loads(router.get("/props?model=red"))["default_generation_settings"]["n_ctx"] == 8192
    assert router.phase("red") == "cold"


def test_what_the_server_says_of_itself_counts_most_and_is_remembered(start: Start) -> None:
    router = start({"red": server("-c", "4096", "-np", "2", "--no-kv-unified")})
    assert length(router) == 4096
    refused = router.post("/tokenize", {"model": "red", "content": "x"})
    assert (refused.status, refused.error["code"]) == (409, "not_resident")
    assert router.phase("red") == "cold"

    router.ask("red")
    # Two slots that do not share: half of it is what a request may fill.
    until(lambda: length(router) == 2048, "what the server said of itself")
    assert entry(router)["status"]["value"] == "loaded"
    tokens = json.loads(router.post("/tokenize", {"model": "red", "content": "red1 red2"}).body)["tokens"]
    assert len(tokens) > 1
    assert "red" in json.loads(router.post("/detokenize", {"model": "red", "tokens": tokens}).body)["content"]
    templated = router.post("/apply-template", {"model": "red", "messages": [{"role": "user", "content": "hi"}]})
    assert json.loads(templated.body)["prompt"] == "user: hi\nassistant:"
    completed = json.loads(router.post("/completion", {"model": "red", "prompt": "x", "n_predict": 3}).body)
    assert completed["tokens_predicted"] == 3
    assert json.loads(router.get("/upstream/red/props"))["default_generation_settings"]["n_ctx"] == 2048
    (running,) = json.loads(router.get("/api/ps"))["models"]
    assert (running["model"], running["context_length"]) == ("red", 2048)

    router.stop()
    router.start()
    assert router.phase("red") == "cold"
    assert length(router) == 2048


def test_a_server_of_embeddings_is_not_offered_for_chats_before_and_after_it_ran(start: Start) -> None:
    router = start({"red": server("--embeddings", "--pooling", "mean", "-c", "4096", "-np", "2", "--no-kv-unified")})
    assert entry(router)["capabilities"] == ["embedding"]
    assert router.post("/v1/embeddings", {"model": "red", "input": "x"}).status == 200
    until(lambda: length(router) == 2048, "what the server said of itself")
    assert entry(router)["capabilities"] == ["embedding"], "its template is one for chats"


def test_a_model_that_fills_gaps_is_shown_so_and_gets_both_sides_of_one(start: Start, tmp_path: Path) -> None:
    make_gguf = pytest.importorskip("make_gguf", reason="needs the `real` extra (gguf, numpy)")
    file = make_gguf.make_gguf(tmp_path / "coder.gguf", fills_gaps=True)
    command = [need_llama_server(), "-m", str(file), "--alias", "coder", "--port", "{port}", "--no-warmup", *ONE_THREAD]
    router = start({"coder": {"type": "generic_process", "start_cmd": command}})
    shown = json.loads(router.post("/api/show", {"name": "coder"}).body)
    assert "insert" in shown["capabilities"]
    assert ".Suffix" in shown["template"]

    asked = {"model": "coder", "prompt": "coder1 coder2", "options": {"num_predict": 4, "temperature": 0}}
    lines = router.post("/api/generate", {**asked, "suffix": "coder3 " * 9}).body.splitlines()
    last = json.loads(lines[-1])
    assert "coder" in "".join(json.loads(line)["response"] for line in lines)
    assert (last["done_reason"], last["eval_count"]) == ("length", 4)
    whole = json.loads(router.post("/api/generate", {**asked, "suffix": "coder3", "stream": False}).body)
    assert whole["response"].count("coder") == 4
    assert whole["prompt_eval_count"] < last["prompt_eval_count"] - 7, "the suffix was read"


def test_a_llama_server_of_another_name_is_known_by_what_it_says_and_remembered(start: Start, tmp_path: Path) -> None:
    script = tmp_path / "serve"
    script.write_text(f'#!/bin/sh\nexec {need_llama_server()} "$@"\n')
    script.chmod(0o755)
    settings = server()
    settings["start_cmd"][0] = str(script)
    router = start({"red": settings})
    gap = {"model": "red", "prompt": "a", "suffix": "b"}

    def path() -> str:
        said = json.loads(router.post("/admin/explain?path=/api/generate", gap).body)
        return str(said["targets"][0]["path"])

    assert path() == "/v1/completions"
    router.ask("red")
    until(lambda: path() == "/infill", "what the server said of itself")
    assert "infill" in router.post("/api/generate", gap).body.decode().lower(), "a model without the tokens for it"
    router.stop()
    router.start()
    assert (path(), router.phase("red")) == ("/infill", "cold")
