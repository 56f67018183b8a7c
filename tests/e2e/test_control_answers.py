"""What control routes answer is what their types say, and so what the reference says."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

import pytest
from reload_kit import from_file, process
from router_kit import MakeRouter, chat

from enginerouter.errors import StartFailed
from enginerouter.web.shapes.control import ANSWERS


def misfits(value: Any, hint: Any, at: str = "answer") -> list[str]:
    """Where a JSON value is not what a type says."""
    origin, arguments = get_origin(hint), get_args(hint)
    if is_typeddict(hint) and not isinstance(value, dict):
        return [f"{at}: {value!r} is no {hint.__name__}"]
    if is_typeddict(hint):
        hints = get_type_hints(hint)
        unknown = [f"{at}.{key}: not in {hint.__name__}" for key in value.keys() - hints.keys()]
        always = {k for k, h in get_type_hints(hint, include_extras=True).items() if get_origin(h) is not NotRequired}
        missing = [f"{at}.{key}: missing" for key in always - value.keys()]
        inner = [m for key in value.keys() & hints.keys() for m in misfits(value[key], hints[key], f"{at}.{key}")]
        return [*unknown, *missing, *inner]
    if origin in (Union, UnionType):
        return [] if any(not misfits(value, one, at) for one in arguments) else [f"{at}: {value!r} is no {hint}"]
    if origin is Literal:
        return [] if value in arguments else [f"{at}: {value!r} is none of {arguments}"]
    if origin in (list, dict):
        if not isinstance(value, origin):
            return [f"{at}: {value!r} is no {origin.__name__}"]
        parts = enumerate(value) if origin is list else value.items()
        return [m for key, part in parts for m in misfits(part, arguments[-1], f"{at}.{key}")]
    if hint in (None, NoneType):
        return [] if value is None else [f"{at}: {value!r} is not null"]
    kinds = (int, float) if hint is float else hint
    fits = hint is Any or (isinstance(value, kinds) and (hint is bool or not isinstance(value, bool)))
    return [] if fits else [f"{at}: {value!r} is no {hint}"]


BODIES = {
    "POST /admin/swap": {"model": "b"},
    "POST /models/switch": {"model": "a"},
    "POST /admin/hold": {"owner": "test"},
    "POST /admin/explain": {"model": "best"},
}


@pytest.mark.parametrize("route", [route for route in ANSWERS if route != "POST /admin/reload"])
async def test_an_answer_is_what_its_type_says(route: str, make_router: MakeRouter) -> None:
    router = await make_router(aliases={"best": {"chain": ("a", "gone", "b")}, "short": "a"})
    await router.load("a")
    method, path = route.split()
    if method == "GET":
        answer = await router.get(path)
    else:
        answer = await router.ask(json.dumps(BODIES.get(route, {})).encode(), path=path)
    assert answer.status == 200, answer.body
    assert misfits(answer.json, ANSWERS[route]) == []


async def test_a_status_of_everything_at_once_is_what_its_type_says(make_router: MakeRouter) -> None:
    """Waiters, a start that has failed, a swap that runs."""
    router = await make_router()
    router.engines["b"].start_error = StartFailed("b", "it did not start")
    assert (await router.ask(chat("b"))).status >= 500
    router.engines["a"].starting.shut()
    asked = asyncio.create_task(router.ask(chat("a")))
    await router.engines["a"].starting.reached.wait()
    status = (await router.get("/status")).json
    slots = {slot["slot"]: slot for slot in status["slots"]}
    assert slots["a"]["waiting"]
    assert slots["b"]["start_circuit"]
    assert status["swaps"]
    assert misfits(status, ANSWERS["GET /status"]) == []
    switching = (await router.get("/models/status")).json
    assert switching["switching_to"]["model"] == "a"
    assert misfits(switching, ANSWERS["GET /models/status"]) == []
    router.engines["a"].starting.open()
    assert (await asked).status == 200


async def test_a_reload_answers_what_its_type_says_and_so_does_status_afterwards(tmp_path: Path) -> None:
    async with from_file(tmp_path, {"a": process()}) as router:
        told = await router.rewrite({"a": process("new"), "b": process()}, port=1)
        assert told["changes"]
        assert misfits(told, ANSWERS["POST /admin/reload"]) == []
        assert misfits((await router.get("/status")).json, ANSWERS["GET /status"]) == []


def test_a_value_that_does_not_fit_is_found() -> None:
    assert misfits({"released": "yes", "more": 1}, ANSWERS["POST /admin/release"]) == [
        "answer.more: not in Released",
        "answer.released: 'yes' is no <class 'bool'>",
    ]
    assert misfits({}, ANSWERS["POST /admin/release"]) == ["answer.released: missing"]
