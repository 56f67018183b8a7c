"""Which headers pass, in both directions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from enginerouter.proxy.headers import request_headers, response_headers


def of(*pairs: tuple[str, str]) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict(pairs))


def names(passed: CIMultiDict[str]) -> set[str]:
    return {name.lower() for name in passed}


HOP_BY_HOP = [
    "Connection",
    "Keep-Alive",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "Proxy-Connection",
    "Proxy-Anything",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
    "HTTP2-Settings",
]
PRIVATE = [
    "Authorization",
    "X-API-Key",
    "x-api-key",
    "Cookie",
    "Host",
    "Content-Length",
    "Expect",
    "Accept-Encoding",
    "Content-Encoding",
    "Origin",
    "Referer",
    "Forwarded",
    "X-Forwarded-For",
    "X-Real-IP",
    "Sec-Fetch-Site",
    "X_Api_Key",
    "Content_Length",
    "X-EngineRouter-Via",
    "X-EngineRouter-Keepalive",
]
OF_THE_ENGINE = [
    "Server",
    "Date",
    "Set-Cookie",
    "Content-Length",
    "Access-Control-Allow-Origin",
    "Access-Control-Anything",
    "X-EngineRouter-Resolved",
    "X-Request-Id",
    "WWW-Authenticate",
    "Alt-Svc",
]


def test_nothing_private_or_of_this_hop_goes_upstream() -> None:
    given_ = of(*((name, "x") for name in HOP_BY_HOP + PRIVATE))
    assert dict(request_headers(given_, {})) == {"Accept-Encoding": "identity"}


def test_nothing_of_the_engine_or_of_that_hop_goes_downstream() -> None:
    assert not response_headers(of(*((name, "x") for name in HOP_BY_HOP + OF_THE_ENGINE)))


def test_what_connection_names_is_dropped_both_ways() -> None:
    named = of(
        ("Connection", "keep-alive, X-Secret"),
        ("Connection", " x-OTHER ,,"),
        ("X-Secret", "1"),
        ("x-other", "2"),
        ("X-Third", "3"),
    )
    assert names(request_headers(named, {})) == {"x-third", "accept-encoding"}
    assert names(response_headers(named)) == {"x-third"}


def test_connection_cannot_name_what_the_router_adds() -> None:
    passed = request_headers(of(("Connection", "authorization, accept-encoding")), {"Authorization": "Bearer engine"})
    assert dict(passed) == {"Authorization": "Bearer engine", "Accept-Encoding": "identity"}


def test_what_the_engine_needs_passes() -> None:
    kept = [
        ("Content-Type", "application/json"),
        ("Accept", "text/event-stream"),
        ("User-Agent", "openai/1"),
        ("anthropic-version", "2023-06-01"),
        ("anthropic-beta", "a"),
        ("anthropic-beta", "b"),
        ("OpenAI-Organization", "o"),
        ("x-stainless-lang", "python"),
    ]
    passed = request_headers(of(("Authorization", "Bearer user-key"), *kept), {"authorization": "Bearer engine"})
    assert passed.getall("anthropic-beta") == ["a", "b"]
    assert passed.getall("Authorization") == ["Bearer engine"]
    assert all(passed[name] in ("b", value, "a") for name, value in kept)


def test_repeated_headers_of_an_answer_survive() -> None:
    passed = response_headers(of(("Link", "a"), ("Link", "b"), ("Content-Type", "text/event-stream")))
    assert passed.getall("Link") == ["a", "b"]
    assert passed["Content-Type"] == "text/event-stream"


def test_headers_that_could_not_be_sent_are_dropped() -> None:
    passed = response_headers(
        of(("X-A", "a\x00b"), ("X-B", "a\r\nSet-Cookie: x"), ("X-C", "a\x7f"), ("X-D", "a\tb"), ("X-E", "ü"))
    )
    assert dict(passed) == {"X-D": "a\tb", "X-E": "ü"}


def test_bytes_that_are_not_utf8_do_not_crash() -> None:
    raw = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert request_headers(of(("User-Agent", raw)), {})["User-Agent"] == raw
    assert response_headers(of(("X-A", raw)))["X-A"] == raw


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20))))
def test_any_headers_can_be_sent_on(pairs: list[tuple[str, str]]) -> None:
    from aiohttp.http_writer import _serialize_headers

    _serialize_headers("HTTP/1.1 200 OK", response_headers(of(*pairs)))
