"""Which headers pass, in both directions."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict

from enginerouter.proxy.headers import connection_names, request_headers, response_headers


def up(*pairs: tuple[str, str], **extra: str) -> list[tuple[str, str]]:
    given = {k.replace("_", "-"): v for k, v in extra.items()}
    return list(request_headers(CIMultiDict(pairs), given).items())


def down(*pairs: tuple[str, str]) -> list[tuple[str, str]]:
    return list(response_headers(CIMultiDict(pairs)).items())


IDENTITY = ("Accept-Encoding", "identity")


def test_what_is_said_to_the_engine_passes_in_order_repeated_too() -> None:
    given = [("Content-Type", "a/b"), ("X-Two", "1"), ("x-two", "2"), ("User-Agent", "me"), ("Accept", "*/*")]
    assert up(*given) == [*given, IDENTITY]


@pytest.mark.parametrize(
    "name",
    ["Connection", "Keep-Alive", "TE", "Trailer", "Transfer-Encoding", "Upgrade", "Proxy-Authorization",
     "Proxy-Anything", "Proxy-Connection", "HTTP2-Settings"],
)  # fmt: skip
def test_what_belongs_to_one_connection_passes_neither_way(name: str) -> None:
    assert up((name, "x"), (name.upper(), "x")) == [IDENTITY]
    assert down((name, "x"), (name.lower(), "x")) == []


@pytest.mark.parametrize(
    "name",
    ["Authorization", "X-API-Key", "api-key", "x-goog-api-key", "Cookie", "Host", "Content-Length", "Expect",
     "Origin", "Referer", "Via", "Forwarded", "X-Forwarded-For", "X-Forwarded-Anything", "X-Real-IP",
     "X-EngineRouter-Keepalive", "Sec-Fetch-Site", "Content-Encoding", "X_Api_Key", "a_b"],
)  # fmt: skip
def test_who_the_client_is_and_how_it_proves_it_stays_here(name: str) -> None:
    assert up((name, "x")) == [IDENTITY]


@pytest.mark.parametrize(
    "name",
    ["Set-Cookie", "Server", "Date", "Content-Length", "Via", "Alt-Svc", "Strict-Transport-Security",
     "WWW-Authenticate", "Access-Control-Allow-Origin", "Access-Control-Anything", "X-Request-Id",
     "X-EngineRouter-Resolved"],
)  # fmt: skip
def test_what_an_engine_says_of_itself_stays_here(name: str) -> None:
    assert down((name, "x")) == []


@pytest.mark.parametrize(
    "name", ["Retry-After", "retry-after-ms", "x-should-retry", "x-ratelimit-remaining", "openai-version", "ETag"]
)
def test_what_clients_act_upon_passes(name: str) -> None:
    assert down((name, "x")) == [(name, "x")]


def test_what_connection_names_passes_neither_way() -> None:
    named = (("Connection", "close, X-Hop"), ("Connection", " x-other "), ("X-Hop", "1"), ("X-Other", "2"))
    assert up(*named) == [IDENTITY]
    assert down(*named, ("X-Kept", "3")) == [("X-Kept", "3")]


@pytest.mark.parametrize("value", ["keep-alive", "Keep-Alive", "close"])
def test_the_usual_connection_values_name_nothing(value: str) -> None:
    assert connection_names(CIMultiDict({"Connection": value})) is None


def test_the_engine_s_own_headers_win() -> None:
    given = up(("Authorization", "Bearer client"), ("X-Team", "red"), Authorization="Bearer engine", X_Team="blue")
    assert given == [("X-Team", "blue"), IDENTITY, ("Authorization", "Bearer engine")]


@pytest.mark.parametrize("value", ["a\x00b", "a\x1bb", "a\x7fb", "a\nb"])
def test_a_value_that_cannot_be_sent_is_dropped(value: str) -> None:
    assert down(("X-Bad", value), ("X-Good", "1")) == [("X-Good", "1")]


def test_tabs_and_letters_of_all_countries_pass() -> None:
    assert down(("X-A", "a\tb"), ("X-B", "größe")) == [("X-A", "a\tb"), ("X-B", "größe")]


@pytest.mark.parametrize("name", ["X Bad", "X-Bä", "X\x01"])
def test_a_name_that_cannot_be_sent_is_dropped(name: str) -> None:
    assert down((name, "1")) == []
