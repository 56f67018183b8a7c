"""Which Host a client may call us by, and which web origins may call us at all.

A browser lets any page send requests to localhost, and DNS rebinding makes a foreign name point here. Without keys
the Host header is the only thing that tells a page of `evil.example` from a program of the user's (CVE-2024-28224).
Pure functions over header values; `Origins` holds what one configuration decides.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from enginerouter.errors import BadRequest, Forbidden, printable

# Accepted Host values remembered, so that the usual ones cost a set look-up. A client cannot grow it further.
MAX_REMEMBERED = 256
_PORT = re.compile(r"[0-9]{1,5}")
_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?(?:\.[A-Za-z0-9_-]+)*\.?")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def split_host(value: str) -> tuple[str, str] | None:
    """(name in lower case without a trailing dot, port or "") of a Host value; None if it is not one.

    RFC 9110 §7.2: uri-host [":" port]; no user, path, query or fragment ("BadHost", CVE-2026-48710).
    """
    if value.startswith("["):
        address, bracket, rest = value[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return None
        name, port = address.lower(), rest[1:]
        if not _is_address(name) or ":" not in name or (rest and not port):
            return None
    else:
        name, colon, port = value.partition(":")
        if (colon and not port) or not _NAME.fullmatch(name):
            return None
        name = name.lower().removesuffix(".")
    if port and (not _PORT.fullmatch(port) or not 0 < int(port) < 65536):
        return None
    return name, port


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return "%" not in name


def is_loopback(name: str) -> bool:
    """RFC 6761 §6.3: localhost and names below it are this machine."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    return _is_address(name) and ipaddress.ip_address(name).is_loopback


class Origins:
    """The Host and Origin rules of one configuration."""

    __slots__ = ("_accepted", "_hosts", "_needs_known_host", "_origins", "_suffixes")

    def __init__(
        self,
        *,
        has_keys: bool,
        allowed_hosts: Iterable[str] = (),
        allowed_origins: Iterable[str] = (),
        machine_names: Iterable[str] = (),
    ) -> None:
        self._needs_known_host = not has_keys
        names = {name.lower().removesuffix(".") for name in (*allowed_hosts, *machine_names) if name}
        self._hosts = names
        # `*.home.arpa` allows every name below home.arpa.
        self._suffixes = (".local", ".internal", *(name[1:] for name in names if name.startswith("*.")))
        self._origins = {origin.lower().rstrip("/") for origin in allowed_origins}
        self._accepted: set[str] = set()

    def check_host(self, value: str | None, *, is_http11: bool) -> None:
        """Raises BadRequest for what is no host, Forbidden for one we do not answer to."""
        if value in self._accepted:
            return
        if value is None:
            # HTTP/1.0 knows no Host (health checks of old load balancers); browsers always send one.
            if is_http11:
                raise BadRequest("the Host header is missing")
            return
        parts = split_host(value)
        if parts is None:
            raise BadRequest(f"{printable(value, 100)!r} is no valid Host")
        if self._needs_known_host and not self._is_known(value.lower(), *parts):
            raise Forbidden(
                f"Host {printable(value, 100)!r} is not a name of this router; "
                "add it to allowed_hosts, or configure api_keys"
            )
        if len(self._accepted) < MAX_REMEMBERED:
            self._accepted.add(value)

    def _is_known(self, value: str, name: str, port: str) -> bool:
        return (
            is_loopback(name)
            or name.endswith(self._suffixes)
            or name in self._hosts
            or value in self._hosts
            or _is_address(name)
        )

    def check_origin(self, origin: str, host: str | None) -> None:
        """Raises Forbidden unless a page of this origin may call us.

        Schemes of desktop apps (`app://`, `tauri://`, `vscode-webview://`) pass: no web page can have one. `null`
        does not: any sandboxed frame has it.
        """
        if not self._may_call(origin, host):
            raise Forbidden(f"pages of {printable(origin, 100)!r} may not call this router; add it to allowed_origins")

    def _may_call(self, origin: str, host: str | None) -> bool:
        lowered = origin.lower()
        if lowered in self._origins:
            return True
        scheme, colon, authority = lowered.partition("://")
        if not colon or not _SCHEME.fullmatch(scheme) or not lowered.isascii() or not lowered.isprintable():
            return False
        default_port = _DEFAULT_PORTS.get(scheme)
        if default_port is None:
            return True
        parts = split_host(authority)
        if parts is None:
            return False
        if is_loopback(parts[0]):
            return True
        own = split_host(host) if host is not None else None
        if own is None or own[0] != parts[0]:
            return False
        # A TLS terminator in front of us changes the scheme, so default ports are compared as left out.
        return (own[1] or default_port) == (parts[1] or default_port)


def is_foreign_fetch(method: str, fetch_site: str | None, origin: str | None) -> bool:
    """A browser says that another site caused this request, and names no origin we could judge.

    GET changes nothing here, so following a link stays possible.
    """
    return (
        fetch_site is not None
        and origin is None
        and method not in ("GET", "HEAD", "OPTIONS")
        and fetch_site.lower() == "cross-site"
    )
