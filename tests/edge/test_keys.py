"""Who may ask: every channel of every key on a real socket, and BadHost (CVE-2026-48710)."""

from __future__ import annotations

import hmac
import json

import pytest
from edge_kit import ADMIN, HOST, KEYS, UMLAUT, USER, MakeEdge
from multidict import CIMultiDict, CIMultiDictProxy

from enginerouter.errors import BadRequest, Unauthorized
from enginerouter.web import keys
from enginerouter.web.keys import LOCAL, Identity, Keyring, identify

BEARER = b"Authorization: Bearer "
X_KEY = b"X-API-Key: "

# credentials → (status on a key route, status on an admin route)
CREDENTIALS = {
    "none": (b"", 401, 401),
    "bearer": (BEARER + b"user-key\r\n", 200, 403),
    "bearer in lower case": (b"authorization: bearer user-key\r\n", 200, 403),
    "bearer with two spaces": (b"Authorization: Bearer  user-key\r\n", 200, 403),
    "x-api-key": (X_KEY + b"user-key\r\n", 200, 403),
    "admin bearer": (BEARER + b"admin-key\r\n", 200, 200),
    "admin x-api-key": (b"x-api-key: admin-key\r\n", 200, 200),
    "both equal": (BEARER + b"user-key\r\n" + X_KEY + b"user-key\r\n", 200, 403),
    "both different": (BEARER + b"user-key\r\n" + X_KEY + b"admin-key\r\n", 400, 400),
    "both different, one wrong": (BEARER + b"wrong\r\n" + X_KEY + b"admin-key\r\n", 400, 400),
    "bearer twice equal": ((BEARER + b"admin-key\r\n") * 2, 200, 200),
    "bearer twice different": (BEARER + b"user-key\r\n" + BEARER + b"admin-key\r\n", 400, 400),
    "x-api-key twice different": (X_KEY + b"user-key\r\n" + X_KEY + b"admin-key\r\n", 400, 400),
    "wrong": (BEARER + b"user-kez\r\n", 401, 401),
    "prefix of one": (BEARER + b"user-ke\r\n", 401, 401),
    "empty": (BEARER + b"\r\n", 401, 401),
    "no secret": (b"Authorization: Bearer\r\n", 401, 401),
    "no scheme": (b"Authorization: user-key\r\n", 401, 401),
    "basic": (b"Authorization: Basic dXNlci1rZXk=\r\n", 401, 401),
    "basic of a front proxy, and a key": (b"Authorization: Basic eDp5\r\n" + X_KEY + b"user-key\r\n", 200, 403),
    "underscores": (b"X_API_KEY: user-key\r\n", 401, 401),
    "cookie": (b"Cookie: api_key=user-key; Authorization=Bearer user-key\r\n", 401, 401),
    "non-ASCII wrong": (BEARER + "schlößel\r\n".encode(), 401, 401),
    "non-ASCII right": (BEARER + "schlüssel\r\n".encode(), 200, 403),
    "latin-1 bytes": (BEARER + b"schl\xfcssel\r\n", 401, 401),
    "named by Connection": (b"Connection: Authorization\r\n" + BEARER + b"user-key\r\n", 200, 403),
    "a list": (X_KEY + b"user-key, admin-key\r\n", 401, 401),
    "7 kB": (BEARER + b"k" * 7000 + b"\r\n", 401, 401),
}


@pytest.mark.parametrize("name", CREDENTIALS)
async def test_every_channel_of_a_key_gives_the_same_verdict(make_edge: MakeEdge, name: str) -> None:
    sent, on_key, on_admin = CREDENTIALS[name]
    edge = await make_edge(keys=KEYS)
    key_routes = [
        b"GET /v1/models",
        b"GET /v1/models/qwen",
        b"POST /v1/chat/completions",
        b"POST /api/chat",
    ]
    admin_routes = [b"POST /admin/swap", b"DELETE /api/delete", b"GET /upstream/llama/props"]
    for line, expected in [(r, on_key) for r in key_routes] + [(r, on_admin) for r in admin_routes]:
        answer = await edge.ask(line + b" HTTP/1.1\r\n" + HOST + sent + b"Content-Length: 0\r\n\r\n")
        assert answer.status == expected, line
        if expected == 401:
            assert answer.headers["www-authenticate"] == "Bearer"
            said = json.loads(answer.body)
            assert (said if b"/api/" in line else said["error"])["code"] == "invalid_api_key"
    assert (len(edge.seen) > 0) is (on_key == 200)


@pytest.mark.parametrize("sent", [b"", BEARER + b"wrong\r\n", BEARER + b"a\r\n" + X_KEY + b"b\r\n"])
async def test_open_routes_ask_for_no_key(make_edge: MakeEdge, sent: bytes) -> None:
    edge = await make_edge(keys=KEYS)
    assert (await edge.ask(b"GET /health HTTP/1.1\r\n" + HOST + sent + b"\r\n")).status == 200
    assert edge.seen == [("GET", "/health", "anonymous", b"")]


async def test_open_routes_know_who_asks_if_told(make_edge: MakeEdge) -> None:
    edge = await make_edge(keys=KEYS)
    await edge.ask(b"GET / HTTP/1.1\r\n" + HOST + BEARER + b"admin-key\r\n\r\n")
    assert edge.seen == [("GET", "/", "admin", b"")]


async def test_without_keys_everybody_who_passes_host_and_origin_is_admin(make_edge: MakeEdge) -> None:
    edge = await make_edge()
    for sent in (b"", BEARER + b"ollama\r\n", BEARER + b"a\r\n" + X_KEY + b"b\r\n"):
        request = b"POST /admin/swap HTTP/1.1\r\n" + HOST + sent + b"Content-Length: 0\r\n\r\n"
        assert (await edge.ask(request)).status == 200
    assert {name for _, _, name, _ in edge.seen} == {"local"}


BAD_HOSTS = [
    b"x/health?",
    b"x/health#",
    b"/health?",
    b"/health",
    b"x/metrics?",
    b"x@y",
    b"user:pass@localhost",
    b"a b",
    b"",
    b":80",
    b"localhost:",
    b"localhost:port",
    b"localhost:99999",
    b"localhost:0",
    b"localhost:80:80",
    b"localhost,evil.example",
    b"localhost\\evil",
    b"[::1",
    b"[::1]x",
    b"[evil.example]",
    b"[fe80::1%25eth0]",
    b"::1",
    b"..",
    b"-",
    b"http://localhost",
    b"loc\xffalhost",
    "lócalhost".encode(),
    b"%6cocalhost",
    b"x" * 300,
]


@pytest.mark.parametrize("host", BAD_HOSTS)
@pytest.mark.parametrize("has_keys", [False, True], ids=["open", "keys"])
async def test_no_host_opens_a_protected_route(make_edge: MakeEdge, host: bytes, has_keys: bool) -> None:
    """The predecessor's key check was skipped by `Host: x/health?` (CVE-2026-48710)."""
    edge = await make_edge(keys=KEYS if has_keys else ())
    for line in (b"POST /admin/swap", b"POST /v1/chat/completions", b"GET /v1/models", b"GET /health"):
        answer = await edge.ask(line + b" HTTP/1.1\r\nHost: " + host + b"\r\nContent-Length: 0\r\n\r\n")
        assert answer.status == 400, line
    assert edge.seen == []


def headers(*pairs: tuple[str, str]) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict(pairs))


def test_an_identity_carries_what_its_key_grants() -> None:
    ring = Keyring(KEYS)
    user = identify(headers(("X-API-Key", "user-key")), ring)
    assert user == Identity("user", False, ("qwen*",), may_use_remote=False, priority=3)
    assert user.may_name("qwen3")
    assert not user.may_name("llama")
    assert identify(headers(("X-API-Key", "admin-key")), ring).may_name("anything")
    assert identify(headers(), Keyring()) is LOCAL


def test_every_key_is_compared_even_after_a_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    class Spy:
        @staticmethod
        def compare_digest(a: bytes, b: bytes) -> bool:
            calls.append(len(a) - len(b))
            return hmac.compare_digest(a, b)

    monkeypatch.setattr(keys, "hmac", Spy)
    ring = Keyring(KEYS)
    for secret in (USER.key, ADMIN.key, UMLAUT.key, "no", ""):
        calls.clear()
        ring.find(secret.encode())
        assert calls == [0] * len(KEYS)  # all of them, all of one length


def test_conflicts_are_told_apart_from_wrong_keys() -> None:
    ring = Keyring(KEYS)
    with pytest.raises(BadRequest, match="different API keys") as conflict:
        identify(headers(("X-API-Key", "a"), ("Authorization", "Bearer b")), ring)
    assert conflict.value.status == 400
    with pytest.raises(Unauthorized):
        identify(headers(("X-API-Key", "a"), ("Authorization", "bearer a")), ring)
