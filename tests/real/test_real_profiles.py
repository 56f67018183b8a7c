"""Profiles of one llama-server, switched by requests and by an operator."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from real_kit import RealRouter, Start, assert_said_by, is_gone

from llama import ONE_THREAD, model_file, need_llama_server

pytestmark = pytest.mark.real


def profiled(**more: Any) -> dict[str, Any]:
    command = [need_llama_server(), "-m", "{model}", "--alias", "{id}", "--port", "{port}", "{flags}", *ONE_THREAD]
    profiles = {
        "red": {"model": str(model_file("red")), "name": "The red one", "flags": {"ctx-size": 1024, "no-warmup": None}},
        "blue": {"model": str(model_file("blue")), "flags": {"c": 2048, "flash-attn": False, "no-warmup": None}},
    }
    return {"type": "generic_process", "start_cmd": command, "profiles": profiles, **more}


def context(router: RealRouter, name: str) -> int:
    with urllib.request.urlopen(f"{router.engine_url(name)}/props", timeout=5) as answer:
        return int(json.load(answer)["default_generation_settings"]["n_ctx"])


def test_a_request_for_the_other_profile_restarts_the_server_with_its_flags(start: Start) -> None:
    router = start({"llama": profiled()})
    assert_said_by("red", router.ask("red"))
    red = router.engine("red")
    assert context(router, "red") == 1024
    assert_said_by("blue", router.ask("blue"))
    assert is_gone(red)
    assert context(router, "blue") == 2048
    words = router.engine("blue").cmdline()
    assert words[words.index("--flash-attn") + 1] == "off"
    assert_said_by("red", router.ask("llama/red"))
    learned = {s["slot"]: s["learned"]["start_s"] for s in router.status()["slots"]}
    assert set(learned) == {"llama/red", "llama/blue"}
    assert all(learned.values())


def test_profiles_of_a_manifest_are_listed_and_switched_by_the_sidecars_routes(start: Start, tmp_path: Path) -> None:
    engine = profiled()
    manifest = tmp_path / "models" / "manifest.json"
    manifest.parent.mkdir()
    for profile in engine["profiles"].values():
        (manifest.parent / Path(profile["model"]).name).symlink_to(profile["model"])
        profile["model"] = Path(profile["model"]).name
    manifest.write_text(json.dumps(engine.pop("profiles")))
    router = start({"llama": {**engine, "manifest": "models/manifest.json"}})

    available = json.loads(router.get("/models/available"))
    assert [(m["id"], m["name"], m["status"]) for m in available["models"]] == [
        ("red", "The red one", "cold"),
        ("blue", "blue", "cold"),
    ]
    assert json.loads(router.get("/models/status"))["status"] == "idle"
    answer = router.post("/models/switch", {"model": "blue"})
    assert answer.status == 200
    assert json.loads(answer.body)["phase"] == "ready"
    assert json.loads(router.get("/models/status")) == {"status": "ready", "active": "blue", "switching_to": None}
    assert context(router, "blue") == 2048
    assert router.post("/models/switch", {"profile": "green"}).status == 404
    assert router.post("/admin/unload", {"engine": "llama"}).status == 200


def test_a_profile_whose_file_is_missing_leaves_the_other_alone(start: Start) -> None:
    engine = profiled()
    engine["profiles"]["gone"] = {"model": "/nowhere/gone.gguf"}
    router = start({"llama": engine})
    router.ask("red")
    red = router.engine("red")
    answer = router.post("/v1/chat/completions", {"model": "gone", "messages": []})
    assert answer.status == 502
    assert "'/nowhere/gone.gguf' does not exist" in answer.error["message"]
    assert not is_gone(red)


def test_a_killed_routers_profile_is_adopted(start: Start) -> None:
    router = start({"llama": profiled()})
    router.ask("blue")
    blue = router.engine("blue")
    router.wait_log("llama/blue starting -> ready")
    router.kill()
    router.start()
    router.wait_log(f"adopted process {blue.pid}")
    assert_said_by("blue", router.ask("blue"))
    assert router.engine("blue") == blue
