"""A router as `routerctl` reaches it: one request at a time, of the standard library alone.

Where it is and what key opens it: `--url` and the environment first, else the configuration file beside which it runs.
A key of a configuration is for the router of that configuration, and goes nowhere else.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from enginerouter.cli.places import config_paths
from enginerouter.config.load import load
from enginerouter.config.model import Config
from enginerouter.errors import ConfigError, printable

DEFAULT_URL = "http://127.0.0.1:8077"
# A swap takes as long as it takes; what is only read does not.
READ_TIMEOUT_S = 20.0


class Refused(Exception):
    """The router said no. `status` is its HTTP status."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Unreachable(Exception):
    """No router answered."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a router is, and the key for it; empty = none."""

    url: str
    key: str = ""


def place_of(url: str | None, config: Path | None, environ: Mapping[str, str] = os.environ) -> Place:
    """From the command line, the environment and the configuration file, in this order. Raises Refused."""
    key = _key(environ)
    found = _config(config, environ) if url is None or not key else None
    where = url or environ.get("ENGINEROUTER_URL") or (_url(found) if found is not None else DEFAULT_URL)
    if urlsplit(where).scheme not in ("http", "https"):
        raise Refused(f"{printable(where)!r} is no URL of a router; one looks like {DEFAULT_URL}")
    if not key and found is not None and _address(where) == _address(_url(found)):
        key = _admin_key(found)
    return Place(where.rstrip("/"), key)


def _address(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port, with one name for this machine."""
    parts = urlsplit(url)
    try:
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:  # no number; asking there says so
        port = None
    host = parts.hostname or ""
    return parts.scheme, "localhost" if host in ("127.0.0.1", "::1") else host, port


def _key(environ: Mapping[str, str]) -> str:
    if key := environ.get("ENGINEROUTER_API_KEY"):
        return key
    file = environ.get("ENGINEROUTER_API_KEY_FILE")
    if not file:
        return ""
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"the key in {file} cannot be read (ENGINEROUTER_API_KEY_FILE): {error}") from None


def _config(named: Path | None, environ: Mapping[str, str]) -> Config | None:
    """The configuration of the router on this machine, if there is one that can be read."""
    for path in [named] if named is not None else config_paths(environ):
        if path.exists() or named is not None:
            try:
                return load(path).config
            except ConfigError as error:
                if named is not None:
                    raise Refused("; ".join(str(p) for p in error.problems)) from None
                return None
    return None


def _url(config: Config) -> str:
    scheme = "https" if config.tls_cert_file else "http"
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(config.host, config.host)
    return f"{scheme}://{f'[{host}]' if ':' in host.strip('[]') and host[0] != '[' else host}:{config.port}"


def _admin_key(config: Config | None) -> str:
    keys = config.api_keys if config is not None else ()
    return next((k.key for k in keys if k.admin), "")


def _keep_alive(sock: socket.socket) -> None:
    """Notice within a minute a host that vanished: a swap, and a log that is followed, may be silent for hours."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if (option := getattr(socket, name, None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


class _Http(http.client.HTTPConnection):
    def connect(self) -> None:
        super().connect()
        _keep_alive(self.sock)


class _Https(http.client.HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        _keep_alive(self.sock)


class _HttpHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Http, req)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Https, req)


class Client:
    """Raises Refused with what the router said, Unreachable if none is there."""

    def __init__(self, place: Place) -> None:
        self.place = place
        # No proxy of the environment: the router is here, or named.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _HttpHandler, _HttpsHandler)

    def get(self, path: str, timeout_s: float = READ_TIMEOUT_S) -> dict[str, Any]:
        return self._json("GET", path, None, timeout_s)

    def status(self, timeout_s: float = READ_TIMEOUT_S) -> dict[str, Any]:
        """`GET /status`; also what tells a router from another server."""
        found = self.get("/status", timeout_s)
        return self._ours(found, is_ours="slots" in found)

    def ping(self) -> dict[str, Any]:
        """`GET /health`, without a key: nobody needs one for it."""
        found = Client(Place(self.place.url)).get("/health")
        return self._ours(found, is_ours=found.get("name") == "enginerouter")

    def _ours(self, found: dict[str, Any], *, is_ours: bool) -> dict[str, Any]:
        if not is_ours:
            raise Refused(f"what answers at {self.place.url} is no enginerouter")
        return found

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """May take as long as a swap does."""
        return self._json("POST", path, body, None)

    def lines(self, path: str, silence_s: float | None, **query: str) -> Iterator[str]:
        """Of an answer that goes on: line by line, until it ends, or says nothing for longer than `silence_s`."""
        with closing(self._open("GET", path + _query(query), None, silence_s)) as answer:
            try:
                for line in answer:
                    yield line.decode("utf-8", "replace").rstrip("\r\n")
            except (OSError, http.client.HTTPException) as error:
                raise Unreachable(f"the router at {self.place.url} ended the connection: {error}") from None

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float | None) -> dict[str, Any]:
        with closing(self._open(method, path, body, timeout_s)) as answer:
            try:
                found = json.loads(answer.read())
            except (OSError, http.client.HTTPException) as error:
                raise Unreachable(f"the router at {self.place.url} broke off its answer: {error}") from None
            except ValueError:
                found = None
        if not isinstance(found, dict):
            raise Refused(f"what answers at {self.place.url} is no enginerouter")
        return found

    def _open(self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.place.url + path, data, method=method)
        if data is not None:
            request.add_header("Content-Type", "application/json")
        if self.place.key:
            request.add_header("Authorization", f"Bearer {self.place.key}")
        try:
            return self._opener.open(request, timeout=timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                raise Refused(_message(error.code, error.read(65536), self.place), error.code) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            why = getattr(error, "reason", error)
            raise Unreachable(f"no router answers at {self.place.url}: {why}") from None


def _query(values: Mapping[str, str]) -> str:
    return "?" + "&".join(f"{quote(k)}={quote(v)}" for k, v in values.items()) if values else ""


def _message(status: int, body: bytes, place: Place) -> str:
    """What an error answer says, in one line; below it what it knows more of."""
    try:
        error = json.loads(body)["error"]
        said = str(error["message"])
    except (ValueError, KeyError, TypeError):
        said = printable(body.decode("utf-8", "replace"), 200) or "no reason given"
        error = {}
    if status == 401:
        hint = "the key was not accepted" if place.key else "it wants a key"
        return f"{hint}: set ENGINEROUTER_API_KEY, or ENGINEROUTER_API_KEY_FILE to a file that holds it"
    if not isinstance(error, dict):
        return said
    problems = error.get("problems")  # of a configuration, each with its place
    told = (
        [str(p["text"]) for p in problems if isinstance(p, dict) and "text" in p] if isinstance(problems, list) else []
    )
    detail = error.get("detail")
    return "\n".join([said, *map(printable, told), *([detail] if isinstance(detail, str) and detail else [])])
