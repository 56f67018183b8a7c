"""Which engine a request goes to, by what it names, and what the lists say; nothing is swapped for a mistake."""

from __future__ import annotations

import asyncio
import json
import tempfile
from typing import Any

import pytest
from engine_server import CLOSE, DONE, SSE_HEAD, chunk, head, ok, sse
from router_kit import CHAT, MakeRouter, RouterUnderTest, chat

from enginerouter.config.model import ApiKey
from enginerouter.swap.phases import Phase

BOUNDARY = "XbX"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def form(*parts: tuple[str, bytes], filename: str | None = "speech.wav") -> bytes:
    body = b""
    for name, value in parts:
        extra = f'; filename="{filename}"' if name == "file" and filename else ""
        body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode()
        body += value + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# --- forms


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/translations", "/v1/images/edits"])
@pytest.mark.parametrize("order", ["model first", "model last"])
async def test_a_form_goes_where_its_model_part_says_byte_for_byte(
    make_router: MakeRouter, path: str, order: str
) -> None:
    router = await make_router()
    parts = [("file", b"RIFF\x00\r\n--not the boundary\xff"), ("model", b"b")]
    body = form(*(parts if order == "model last" else reversed(parts)))
    answer = await router.ask(body, path=path, headers=FORM)
    assert answer.status == 200
    assert router.engines["b"].server.received[0].body == body
    assert router.engines["b"].server.received[0].header("content-type") == FORM["Content-Type"]
    assert router.engines["a"].starts == 0


@pytest.mark.parametrize("size", [100, 3_000_000], ids=["in memory", "in a file"])
async def test_the_model_part_is_renamed_for_an_alias_and_nothing_else(make_router: MakeRouter, size: int) -> None:
    router = await make_router(
        models=[{"id": "whisper", "engine": "a", "upstream_id": "whisper-large-v3.gguf"}], aliases={"ear": "whisper"}
    )
    sound = bytes(range(256)) * (size // 256)
    answer = await router.ask(
        form(("file", sound), ("model", b"ear"), ("language", b"de")), path="/v1/audio/transcriptions", headers=FORM
    )
    assert answer.status == 200
    got = router.engines["a"].server.received[0]
    assert got.body == form(("file", sound), ("model", b"whisper-large-v3.gguf"), ("language", b"de"))
    assert got.header("content-length") == str(len(got.body))


async def test_a_large_form_is_not_kept_in_memory_while_it_waits(
    make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: list[Any] = []
    make = tempfile.TemporaryFile

    def noted(*args: Any, **kwargs: Any) -> Any:
        files.append(make(*args, **kwargs))
        return files[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", noted)
    router = await make_router(max_buffered_mib=2)
    router.engines["a"].starting.shut()
    body = form(("file", b"x" * 5_000_000), ("model", b"a"))
    async with router.client() as client:
        await client.send("POST", "/v1/audio/transcriptions", body, FORM)
        await router.engines["a"].starting.reached.wait()
        assert len(files) == 1
        router.engines["a"].starting.open()
        assert (await client.answer()).status == 200
    assert router.engines["a"].server.received[0].body == body
    await router.until(lambda: files[0].closed)


async def test_a_form_in_a_file_is_sent_whole_on_the_retry(make_router: MakeRouter) -> None:
    """The first try may still be reading the file when the second begins."""
    router = await make_router()
    await router.load()
    server = router.engines["a"].server

    body = form(("file", bytes(range(256)) * 40_000), ("model", b"a"))
    for _ in range(5):
        server.queued = [[CLOSE]]
        answer = await router.ask(body, path="/v1/audio/transcriptions", headers=FORM)
        assert answer.status == 200
    assert all(r.body == body for r in server.received[1:])
    assert len(server.received) == 11


async def test_a_form_without_a_model_gets_the_default_one(make_router: MakeRouter) -> None:
    router = await make_router(default_model="b")
    body = form(("file", b"RIFF"))
    answer = await router.ask(body, path="/v1/audio/transcriptions", headers=FORM)
    assert answer.status == 200
    got = router.engines["b"].server.received[0].body
    assert got.endswith(body)
    assert got == form(("model", b"b"), ("file", b"RIFF"))


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (form(("model", b"a"), ("model", b"b")), FORM),
        (form(("model", b"\xff")), FORM),
        (form(("model", b"a"))[:-12], FORM),
        (b"", FORM),
        (form(("model", b"a")), {"Content-Type": "multipart/form-data"}),
        (form(("model", b"a")), {"Content-Type": "multipart/mixed; boundary=XbX"}),
        (b"", {}),
        (b"[]", {}),
        (b'{"model": 7}', {}),
        (b'{"model": ["a"]}', {}),
        (b'{"model": "a", "model": "b"}', {}),
        (b"\xff\xfe{\x00}\x00", {}),
        (b"[" * 100_000, {}),
        (b'{"model":"a","x":NaN}', {}),
        (b'{"model":"a","x":' + b"9" * 5000 + b"}", {}),
    ],
)
async def test_a_body_that_is_no_request_is_400_and_starts_nothing(
    make_router: MakeRouter, body: bytes, headers: dict[str, str]
) -> None:
    router = await make_router()
    answer = await router.ask(body, path="/v1/audio/transcriptions", headers=headers)
    assert answer.status == 400
    assert set(answer.error) >= {"message", "type", "param", "code"}
    assert router.engines["a"].starts == 0


# --- unknown and missing models


@pytest.mark.parametrize("name", ["qwen3-colder", "gpt-4-typo", "a/none", "none/a", "../a", "a" * 500, "*", "a\u0000"])
async def test_an_unknown_model_is_404_and_evicts_nothing(make_router: MakeRouter, name: str) -> None:
    """Predecessor E3: a typo evicted the running engine."""
    router = await make_router(models=[{"id": "qwen3-coder", "engine": "a"}, {"id": "b", "engine": "b"}])
    await router.load("b")
    answer = await router.ask(json.dumps({"model": name}).encode())
    assert (answer.status, answer.error["code"], answer.error["type"]) == (
        404,
        "model_not_found",
        "invalid_request_error",
    )
    assert router.phase("b") is Phase.READY
    assert router.engines["a"].starts == 0
    if name == "qwen3-colder":
        assert "did you mean 'qwen3-coder'?" in answer.error["message"]


async def test_a_request_without_a_model_goes_to_the_default_then_to_the_resident(make_router: MakeRouter) -> None:
    router = await make_router()
    answer = await router.ask(chat(None))
    assert answer.status == 400
    assert "names no model" in answer.error["message"]
    await router.load("b")
    for nothing in (chat(None), chat(""), b'{"model": null}'):
        answer = await router.ask(nothing)
        assert answer.header("x-enginerouter-resolved") == "b/b"
    assert router.engines["b"].server.received[-1].json["model"] == "b"
    assert router.engines["a"].starts == 0


async def test_a_default_model_is_swapped_to(make_router: MakeRouter) -> None:
    router = await make_router(default_model="a")
    await router.load("b")
    answer = await router.ask(b'{"metadata": {"model": "x"}}')
    assert answer.header("x-enginerouter-resolved") == "a/a"
    assert router.engines["a"].server.received[0].json == {"metadata": {"model": "x"}, "model": "a"}


# --- lists


async def test_the_lists_come_from_the_configuration_and_load_nothing(make_router: MakeRouter) -> None:
    router = await make_router(
        models=[
            {"id": "org/big:7b", "engine": "a", "context_length": 8192, "display_name": "Big", "description": "chats"}
        ],
        aliases={"fast": "org/big:7b", "secret": {"target": "org/big:7b", "hidden": True}, "claude-*": "org/big:7b"},
    )
    listed = (await router.get("/v1/models")).json
    assert listed["object"] == "list"
    assert [m["id"] for m in listed["data"]] == ["org/big:7b", "b", "fast"]
    big = listed["data"][0]
    assert (big["object"], big["owned_by"], big["name"], big["context_length"]) == ("model", "a", "Big", 8192)
    assert isinstance(big["created"], int)
    assert listed["data"][2]["alias_of"] == "org/big:7b"
    for path in ("/v1/models/org/big:7b", "/v1/models/org%2Fbig%3A7b"):
        assert (await router.get(path)).json == big
    missing = await router.get("/v1/models/org/bag:7b")
    assert (missing.status, missing.error["code"]) == (404, "model_not_found")
    assert "org/big:7b" in missing.error["message"]
    root = await router.get("/v1")
    assert root.status == 200
    assert "/v1/chat/completions" in root.json["endpoints"]
    assert [e.starts for e in router.engines.values()] == [0, 0]
    assert (await router.ask(path="/v1/models", method="HEAD")).status == 200


async def test_models_of_a_disabled_engine_are_neither_listed_nor_served(make_router: MakeRouter) -> None:
    """Predecessor E16."""
    router = await make_router(
        {"a": {}, "b": {"enabled": False}}, models=[{"id": "m", "engine": "b"}], aliases={"x": "m"}
    )
    assert [m["id"] for m in (await router.get("/v1/models")).json["data"]] == ["a"]
    for name in ("m", "x", "b/m"):
        assert (await router.ask(chat(name))).status == 404


@pytest.fixture
async def keyed(make_router: MakeRouter) -> RouterUnderTest:
    keys = (
        ApiKey(name="boss", key="boss-key", admin=True),
        ApiKey(name="guest", key="guest-key", models=("pub*", "claude-haiku*")),
    )
    return await make_router(
        api_keys=keys,
        models=[{"id": "public", "engine": "a"}, {"id": "private", "engine": "b"}],
        aliases={"pub-too": "private", "claude-*": "public", "pubchain": {"chain": ("public",)}},
    )


async def test_a_key_sees_and_names_only_its_models(keyed: RouterUnderTest) -> None:
    guest, boss = bearer("guest-key"), bearer("boss-key")
    assert [m["id"] for m in (await keyed.get("/v1/models", **guest)).json["data"]] == ["public", "pub-too", "pubchain"]
    assert len((await keyed.get("/v1/models", **boss)).json["data"]) == 4
    for name in ("private", "b/private", "private:latest", "claude-opus"):
        answer = await keyed.ask(chat(name), headers=guest)
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
        assert "did you mean 'private'" not in answer.error["message"]
    assert (await keyed.get("/v1/models/private", **guest)).status == 404
    assert keyed.engines["b"].starts == 0
    for name in ("public", "a/public", "public:latest", "pub-too", "claude-haiku-4"):
        assert (await keyed.ask(chat(name), headers=guest)).status == 200, name
    status = (await keyed.get("/status", **guest)).json
    assert "private" not in json.dumps(status)


async def test_the_fence_holds_for_requests_that_name_no_model(keyed: RouterUnderTest) -> None:
    assert (await keyed.ask(chat("private"), headers=bearer("boss-key"))).status == 200
    assert (await keyed.ask(chat(None), headers=bearer("guest-key"))).status == 404


async def test_without_a_key_nothing_is_told_and_the_body_is_not_read(keyed: RouterUnderTest) -> None:
    async with keyed.client() as client:
        client.writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n".encode())
        answer = await client.answer()
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    for path in ("/v1/models", "/status", "/v1"):
        assert (await keyed.get(path)).status == 401
    assert (await keyed.get("/health")).status == 200


async def test_a_higher_priority_goes_first_across_engines(make_router: MakeRouter) -> None:
    keys = (ApiKey(name="low", key="low"), ApiKey(name="high", key="high", priority=5))
    router = await make_router(("a", "b", "c"), api_keys=keys, swap_max_wait_s=60.0)
    hold = asyncio.Event()
    router.engines["a"].server.script = [hold, *ok()]
    order = []

    async def ask(model: str, key: str) -> None:
        await router.ask(chat(model), headers=bearer(key))
        order.append(model)

    asking = [asyncio.create_task(ask("a", "low"))]
    await router.engines["a"].server.exchange()
    for number, (model, key) in enumerate((("b", "low"), ("c", "high")), 1):
        asking.append(asyncio.create_task(ask(model, key)))
        await router.until(lambda n=number: router.router.coordinator.queued == n)  # type: ignore[misc]
    hold.set()
    await asyncio.gather(*asking)
    assert order == ["a", "c", "b"]


# --- stored responses

RESPONSES = "/v1/responses"


def stored(name: str = "resp_1") -> list[Any]:
    return list(ok(json.dumps({"id": name, "object": "response", "output": []}).encode()))


async def test_a_stored_response_is_asked_of_the_engine_that_made_it(make_router: MakeRouter) -> None:
    router = await make_router({"a": {}, "b": {"holds_memory": False}})
    router.engines["b"].server.script = stored("resp_b")
    await router.ask(b'{"model": "b", "input": "x"}', path=RESPONSES)
    for method, path in (
        ("GET", f"{RESPONSES}/resp_b?include=x"),
        ("GET", f"{RESPONSES}/resp_b/input_items"),
        ("POST", f"{RESPONSES}/resp_b/cancel"),
        ("DELETE", f"{RESPONSES}/resp_b"),
    ):
        answer = await router.ask(b"" if method == "POST" else None, path=path, method=method)
        assert answer.status == 200
        got = router.engines["b"].server.received[-1]
        assert (got.method, got.target) == (method, path)
    assert router.engines["a"].starts == 0


async def test_previous_response_id_pins_a_request_to_its_engine(make_router: MakeRouter) -> None:
    router = await make_router({"a": {}, "b": {"holds_memory": False}})
    router.engines["b"].server.script = stored("resp_b")
    await router.ask(b'{"model": "b"}', path=RESPONSES)
    answer = await router.ask(b'{"model": "a", "previous_response_id": "resp_b"}', path=RESPONSES)
    assert answer.header("x-enginerouter-resolved") == "b/b"
    answer = await router.ask(b'{"model": "a", "previous_response_id": "resp_of_before_a_restart"}', path=RESPONSES)
    assert answer.header("x-enginerouter-resolved") == "a/a"


@pytest.mark.parametrize("pieces", [1, 4, 40])
async def test_the_id_of_a_streamed_response_is_found_however_it_is_cut(make_router: MakeRouter, pieces: int) -> None:
    router = await make_router()
    said = b'event: response.created\ndata: {"type":"response.created","response":{"id":"resp_s","output":[]}}\n\n'
    step = len(said) // pieces + 1
    steps: list[Any] = []
    for at in range(0, len(said), step):
        steps += [said[at : at + step], 0.001]
    router.engines["a"].server.queued = [sse(*steps)]
    await router.ask(b'{"model": "a", "stream": true}', path=RESPONSES)
    assert (await router.get(f"{RESPONSES}/resp_s")).status == 200


async def test_a_response_is_another_key_s_secret(make_router: MakeRouter) -> None:
    keys = (ApiKey(name="one", key="one"), ApiKey(name="two", key="two"))
    router = await make_router(api_keys=keys)
    router.engines["a"].server.script = stored()
    await router.ask(b'{"model": "a"}', path=RESPONSES, headers=bearer("one"))
    for method in ("GET", "DELETE"):
        theirs = await router.ask(path=f"{RESPONSES}/resp_1", method=method, headers=bearer("two"))
        unknown = await router.ask(path=f"{RESPONSES}/resp_2", method=method, headers=bearer("two"))
        assert theirs.status == unknown.status == 404
        assert theirs.error["code"] == unknown.error["code"]
        assert theirs.error["message"].replace("resp_1", "resp_2") == unknown.error["message"]
    # It would go on with the other's conversation, by the name of the same model.
    body = b'{"model": "a", "previous_response_id": "resp_1"}'
    assert (await router.ask(body, path=RESPONSES, headers=bearer("two"))).status == 404
    assert (await router.ask(body, path=RESPONSES, headers=bearer("one"))).status == 200
    assert len(router.engines["a"].server.received) == 2


async def test_a_stored_response_of_an_engine_that_is_not_loaded_is_409_and_loads_nothing(
    make_router: MakeRouter,
) -> None:
    router = await make_router()
    router.engines["a"].server.script = stored()
    await router.ask(b'{"model": "a"}', path=RESPONSES)
    await router.load("b")
    answer = await router.get(f"{RESPONSES}/resp_1")
    assert (answer.status, answer.error["code"], answer.header("x-should-retry")) == (409, "not_resident", "false")
    assert router.phase("b") is Phase.READY
    assert router.engines["a"].starts == 1


async def test_a_broken_body_of_a_cancel_leaves_no_lease(make_router: MakeRouter) -> None:
    router = await make_router()
    router.engines["a"].server.script = stored()
    await router.ask(b'{"model": "a"}', path=RESPONSES)
    answer = await router.ask(b"x", path=f"{RESPONSES}/resp_1/cancel", headers={"Content-Encoding": "gzip"})
    assert answer.status == 415
    assert router.in_flight == 0


async def test_a_failure_while_following_ends_its_keep_alives(make_router: MakeRouter) -> None:
    router = await make_router(json_keepalive_after_s=0.02, swap_keepalive_interval_s=0.02)
    router.engines["a"].server.queued = [stored()]
    await router.ask(b'{"model": "a"}', path=RESPONSES)
    router.engines["a"].server.script = [head(200, [("Content-Length", "5")]), CLOSE]
    async with router.client() as client:
        await client.send("GET", f"{RESPONSES}/resp_1")
        assert (await client.answer()).status == 502
        await asyncio.sleep(0.1)
        await client.send("GET", "/health")
        assert (await client.answer()).status == 200


async def test_a_followed_stream_that_breaks_says_so_in_band(make_router: MakeRouter) -> None:
    router = await make_router()
    router.engines["a"].server.queued = [stored()]
    await router.ask(b'{"model": "a"}', path=RESPONSES)
    router.engines["a"].server.script = [SSE_HEAD, chunk(b"data: {}\n\n"), 0.02, CLOSE]
    answer = await router.get(f"{RESPONSES}/resp_1?stream=true")
    assert answer.is_whole
    assert b'"message": "the answer of a broke off' in answer.body
    assert DONE not in answer.body, "chat's end is no part of this stream"
