"""Profiles as clients and operators see them: names, lists, and the sidecar's routes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from router_kit import MakeRouter, chat

from enginerouter.config.engines import Profile
from enginerouter.config.model import ApiKey

PROFILES = {
    "red": Profile(id="red", model=Path("r"), name="The red one"),
    "blue": Profile(id="blue", model=Path("b")),
}
ENGINES: dict[str, dict[str, Any]] = {"a": {"profiles": PROFILES}, "b": {}}


def body(**said: Any) -> bytes:
    return json.dumps(said).encode()


async def test_profiles_are_models_with_a_slot_each(make_router: MakeRouter) -> None:
    models = [
        {"id": "red", "engine": "a", "context_length": 512},
        {"id": "azure", "engine": "a", "upstream_id": "blue"},
    ]
    router = await make_router(ENGINES, models=models)
    listed = {m["id"]: m for m in (await router.get("/v1/models")).json["data"]}
    assert set(listed) == {"red", "azure", "b"}
    assert listed["red"]["context_length"] == 512
    for name in ("red", "azure", "a/red"):
        assert (await router.ask(chat(name))).status == 200
    slots = {s["slot"]: s["models"] for s in (await router.get("/status")).json["slots"]}
    assert slots == {"a/red": ["red"], "a/blue": ["azure"], "b": ["b"]}
    assert router.engines["a"].starts == 3, "each change of the profile is a restart"


async def test_the_lists_say_what_there_is_and_what_is_loaded(make_router: MakeRouter) -> None:
    router = await make_router(ENGINES)
    available = (await router.get("/models/available")).json
    assert available["models"][0] == {"id": "red", "name": "The red one", "engine": "a", "status": "cold"}
    assert available["active"] is None
    assert (await router.get("/models/status")).json == {"status": "idle", "active": None, "switching_to": None}
    router.engines["a"].starting.shut()
    assert (await router.ask(body(model="blue"), path="/models/switch?wait=0")).status == 202
    await router.engines["a"].starting.reached.wait()
    status = (await router.get("/models/status")).json
    assert status["status"] == "switching"
    assert (status["switching_to"]["model"], status["switching_to"]["step"]) == ("blue", "starting")
    router.engines["a"].starting.open()
    assert (await router.ask(body(profile="blue"), path="/models/switch")).json["slot"] == "a/blue"
    assert (await router.get("/models/status")).json["active"] == "blue"


async def test_a_switch_without_a_name_or_with_an_unknown_one_is_refused(make_router: MakeRouter) -> None:
    router = await make_router(ENGINES)
    assert (await router.ask(b"{}", path="/models/switch")).status == 400
    assert (await router.ask(body(model="green"), path="/models/switch")).status == 404
    assert (await router.get("/models/switch")).status == 405


async def test_an_engine_with_profiles_is_named_as_a_whole_only_where_that_is_clear(make_router: MakeRouter) -> None:
    router = await make_router(ENGINES)
    refused = await router.ask(body(engine="a"), path="/admin/swap")
    assert refused.status == 400
    assert "red, blue" in refused.error["message"]
    assert (await router.ask(body(model="blue"), path="/admin/swap")).status == 200
    assert (await router.ask(body(engine="a"), path="/admin/swap")).json["slot"] == "a/blue"
    assert (await router.ask(body(engine="a"), path="/admin/unload")).json == {"unloading": ["a/blue"]}
    assert (await router.ask(body(engine="a"), path="/admin/reset")).json["reset"] == ["a/red", "a/blue"]


async def test_only_an_admin_may_switch_and_a_key_sees_only_its_models(make_router: MakeRouter) -> None:
    keys = (ApiKey(name="boss", key="boss", admin=True), ApiKey(name="some", key="some", models=("red",)))
    router = await make_router(ENGINES, api_keys=keys)
    some, boss = {"Authorization": "Bearer some"}, {"Authorization": "Bearer boss"}
    assert (await router.ask(body(model="red"), path="/models/switch", headers=some)).status == 403
    assert (await router.ask(body(model="blue"), path="/models/switch", headers=boss)).status == 200
    available = (await router.get("/models/available", **some)).json
    assert [m["id"] for m in available["models"]] == ["red"]
    assert available["active"] is None
