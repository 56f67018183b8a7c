"""Which pages may call: DNS rebinding, drive-by requests and CORS."""

from __future__ import annotations

import pytest
from edge_kit import HOST, KEYS, MakeEdge

from enginerouter.errors import Forbidden
from enginerouter.web.origin import MAX_REMEMBERED, Origins, split_host

KEY = b"X-API-Key: admin-key\r\n"
ROUTES = [b"POST /admin/swap", b"POST /api/chat", b"POST /v1/chat/completions", b"GET /v1/models", b"GET /health"]

KNOWN_HOSTS = [
    b"localhost",
    b"LOCALHOST:8077",
    b"localhost.",
    b"app.localhost:3000",
    b"127.0.0.1:8077",
    b"192.168.1.5:8077",
    b"[::1]:8077",
    b"[fd00::5]",
    b"spark",
    b"spark:8077",
    b"spark.local",
    b"host.docker.internal:8077",
    b"box.example",
    b"Box.Example:443",
    b"nas.home.arpa",
]
FOREIGN_HOSTS = [
    b"evil.example",
    b"evil.example:8077",
    b"localhost.evil.example",
    b"127.0.0.1.evil.example",
    b"evil-localhost",
    b"evillocal",
    b"0x7f000001",
    b"2130706433",
    b"sub.box.example",
    b"home.arpa.evil.example",
]


@pytest.mark.parametrize("host", KNOWN_HOSTS)
async def test_names_of_this_machine_are_served_without_keys(make_edge: MakeEdge, host: bytes) -> None:
    edge = await make_edge()
    assert (await edge.ask(b"GET /v1/models HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")).status == 200


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
async def test_foreign_names_are_refused_without_keys_and_fine_with_one(make_edge: MakeEdge, host: bytes) -> None:
    edge = await make_edge()
    keyed = await make_edge(keys=KEYS)
    for line in ROUTES:
        head = line + b" HTTP/1.1\r\nHost: " + host + b"\r\nContent-Length: 0\r\n"
        assert (await edge.ask(head + b"\r\n")).status == 403
        assert (await keyed.ask(head + KEY + b"\r\n")).status == 200
    assert edge.seen == []


async def test_an_http10_health_check_without_host_passes(make_edge: MakeEdge) -> None:
    edge = await make_edge()
    assert (await edge.ask(b"GET /health HTTP/1.0\r\n\r\n")).status == 200


ALLOWED_ORIGINS = [
    b"http://localhost:3000",
    b"http://127.0.0.1:5173",
    b"https://[::1]:8443",
    b"http://tauri.localhost",
    b"https://chat.example",
    b"https://CHAT.example",
    b"app://obsidian.md",
    b"tauri://localhost",
    b"vscode-webview://0abc",
    b"chrome-extension://abcdef",
    b"http://box.example",
    b"https://box.example",
    b"http://box.example:80",
]
REFUSED_ORIGINS = [
    b"https://evil.example",
    b"http://evil.example",
    b"null",
    b"",
    b"https://chat.example.evil.example",
    b"http://chat.example",
    b"https://chat.example:444",
    b"https://localhost.evil.example",
    b"http://localhost@evil.example",
    b"https://evil.example#http://localhost",
    b"http://box.example:8077",
    b"http://192.168.1.5",
    b"https://evil.example, https://chat.example",
    b"evil.example",
    b"http:",
    b"\xff\xfe",
]


@pytest.mark.parametrize("has_keys", [False, True], ids=["open", "keys"])
@pytest.mark.parametrize("origin", ALLOWED_ORIGINS)
async def test_allowed_origins_may_call_and_read(make_edge: MakeEdge, origin: bytes, has_keys: bool) -> None:
    edge = await make_edge(keys=KEYS if has_keys else ())
    for line in ROUTES:
        head = line + b" HTTP/1.1\r\nHost: box.example\r\nContent-Length: 0\r\nSec-Fetch-Site: cross-site\r\n"
        answer = await edge.ask(head + KEY + b"Origin: " + origin + b"\r\n\r\n")
        assert answer.status == 200
        assert answer.headers["access-control-allow-origin"] == origin.decode()
        assert answer.headers["vary"] == "Origin"
        assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()


@pytest.mark.parametrize("has_keys", [False, True], ids=["open", "keys"])
@pytest.mark.parametrize("origin", REFUSED_ORIGINS)
async def test_foreign_origins_are_refused_on_every_route(make_edge: MakeEdge, origin: bytes, has_keys: bool) -> None:
    edge = await make_edge(keys=KEYS if has_keys else ())
    for line in ROUTES:
        head = line + b" HTTP/1.1\r\nHost: box.example\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n"
        answer = await edge.ask(head + KEY + b"Origin: " + origin + b"\r\n\r\n{}")
        assert answer.status == 403
        assert "access-control-allow-origin" not in answer.headers
    assert edge.seen == []


async def test_a_post_from_another_site_without_origin_is_refused(make_edge: MakeEdge) -> None:
    edge = await make_edge()
    for line in ROUTES:
        head = line + b" HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\nSec-Fetch-Site: "
        assert (await edge.ask(head + b"cross-site\r\n\r\n")).status == (403 if line.startswith(b"POST") else 200)
        assert (await edge.ask(head + b"same-origin\r\n\r\n")).status == 200


async def test_a_preflight_needs_no_key_and_names_no_star(make_edge: MakeEdge) -> None:
    edge = await make_edge(keys=KEYS)
    head = b"OPTIONS /v1/chat/completions HTTP/1.1\r\n" + HOST
    asks = (
        b"Access-Control-Request-Method: POST\r\n"
        b"Access-Control-Request-Headers: authorization,content-type,x-stainless-os\r\n"
        b"Access-Control-Request-Private-Network: true\r\n"
    )
    answer = await edge.ask(head + asks + b"Origin: https://chat.example\r\n\r\n")
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == "https://chat.example"
    assert answer.headers["access-control-allow-methods"] == "POST, OPTIONS"
    assert answer.headers["access-control-allow-headers"] == "authorization,content-type,x-stainless-os"
    assert answer.headers["access-control-allow-private-network"] == "true"
    assert "*" not in str(answer.headers)
    assert (await edge.ask(head + asks + b"Origin: https://evil.example\r\n\r\n")).status == 403
    unknown = b"OPTIONS /nowhere HTTP/1.1\r\n" + HOST + b"Origin: https://chat.example\r\n\r\n"
    assert (await edge.ask(unknown)).status == 404
    assert edge.seen == []


async def test_options_without_origin_names_the_methods(make_edge: MakeEdge) -> None:
    edge = await make_edge(keys=KEYS)
    answer = await edge.ask(b"OPTIONS /v1/models HTTP/1.1\r\n" + HOST + b"\r\n")
    assert (answer.status, answer.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
    assert "access-control-allow-origin" not in answer.headers


async def test_a_page_may_read_why_it_was_refused(make_edge: MakeEdge) -> None:
    edge = await make_edge(keys=KEYS)
    answer = await edge.ask(b"GET /v1/models HTTP/1.1\r\n" + HOST + b"Origin: http://localhost:3000\r\n\r\n")
    assert answer.status == 401
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"


def test_remembered_hosts_are_bounded() -> None:
    origins = Origins(has_keys=True)
    for index in range(MAX_REMEMBERED * 4):
        origins.check_host(f"h{index}.example", is_http11=True)
    assert len(origins._accepted) == MAX_REMEMBERED


def test_a_refused_host_stays_refused() -> None:
    origins = Origins(has_keys=False)
    for _ in range(3):
        with pytest.raises(Forbidden):
            origins.check_host("evil.example", is_http11=True)


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("localhost", ("localhost", "")),
        ("Local_Host.:80", ("local_host", "80")),
        ("[::1]:80", ("::1", "80")),
        ("1.2.3.4", ("1.2.3.4", "")),
        ("[1.2.3.4]", None),
        ("a..b", None),
        ("a.-b-.c", ("a.-b-.c", "")),
        ("a:b", None),
    ],
)
def test_hosts_are_split(value: str, parts: tuple[str, str] | None) -> None:
    assert split_host(value) == parts
