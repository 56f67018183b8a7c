"""The text formats that keys may ask for, by name: URLs, paths, signals and the like.

A format is a plain function from the text to the value stored; it raises `BadForm` with what is wrong and a hint.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
import signal
from collections.abc import Callable, Mapping
from types import MappingProxyType
from urllib.parse import urlsplit

from enginerouter.config.report import did_you_mean


class BadForm(ValueError):
    """Text that is not of its format. Never quotes the text: it may be a secret."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def base_url(text: str) -> str:
    """`http(s)://host[:port][/path]` without a slash at the end."""
    if "://" not in text:
        raise BadForm("must begin with http:// or https://", "write it like http://127.0.0.1:8080")
    if any(c.isspace() or not c.isprintable() for c in text):
        raise BadForm("must not contain white space")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadForm(f"is not a URL: {_why(error)}") from None
    if parts.scheme not in ("http", "https"):
        raise BadForm("must begin with http:// or https://", "write it like http://127.0.0.1:8080")
    if parts.username is not None or parts.password is not None:
        raise BadForm("must not contain a user or password", "use api_key or headers")
    if not host:
        raise BadForm("has no host", "write it like http://127.0.0.1:8080")
    if port == 0:
        raise BadForm("must not name port 0")
    if "?" in text or "#" in text:
        raise BadForm("must not contain a query or fragment")
    return text.rstrip("/")


def _why(error: ValueError) -> str:
    # urlsplit quotes parts of the text in some of its messages; the port's is the one worth telling.
    return "its port must be a number from 1 to 65535" if "ort" in str(error) else "its host is malformed"


def url_path(text: str) -> str:
    if not text.startswith("/"):
        raise BadForm("must begin with '/'", "write it like /health")
    if any(c.isspace() or not c.isprintable() for c in text) or "#" in text:
        raise BadForm("must not contain white space or '#'")
    return text


def url_path_or_empty(text: str) -> str:
    return url_path(text) if text else text


def signal_name(text: str) -> str:
    """`SIGTERM`, `TERM` or `15` → `TERM`."""
    names = {s.name.removeprefix("SIG"): int(s) for s in signal.Signals}
    if text.isascii() and text.isdigit():
        found = [name for name, number in names.items() if number == int(text)] if len(text) < 4 else []
        if not found:
            raise BadForm("is not the number of a signal", "TERM is 15, INT is 2")
        return found[0]
    name = text.upper().removeprefix("SIG")
    if name not in names:
        raise BadForm("is not a signal", did_you_mean(name, names))
    return name


def ready_check(text: str) -> str:
    if not text or (text.startswith("model:") and len(text) > len("model:")):
        return text
    try:
        return equality(text)
    except BadForm:
        raise BadForm("must be empty, 'model:<id>' or 'key==value'", "for example status==ok") from None


def equality(text: str) -> str:
    if text and not text.partition("==")[0].strip():
        raise BadForm("must look like 'key==value'")
    if text and "==" not in text:
        raise BadForm("must look like 'key==value'")
    return text


def name(text: str) -> str:
    """An id that clients send: not empty, no control characters, no white space at its ends."""
    if not text:
        raise BadForm("must not be empty")
    if not text.isprintable() or text != text.strip():
        raise BadForm("must not contain control characters, or white space at its ends")
    return text


def header_value(text: str) -> str:
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise BadForm("must not contain control characters")
    return text


def header_name(text: str) -> str:
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", text):  # RFC 9110 §5.6.2
        raise BadForm("is not a header name")
    return text


def env_value(text: str) -> str:
    if "\0" in text:
        raise BadForm("must not contain NUL")
    return text


def env_name(text: str) -> str:
    if not text or "=" in text or "\0" in text:
        raise BadForm("is not the name of an environment variable")
    return text


def origin(text: str) -> str:
    """`scheme://host[:port]`, as browsers send it."""
    try:
        parts = urlsplit(text)
        is_origin = bool(parts.scheme and parts.hostname) and parts.port != 0
    except ValueError:
        is_origin = False
    if not is_origin or text.lower() != f"{parts.scheme}://{parts.netloc}".lower() or "@" in text or "*" in text:
        raise BadForm("must be an origin: scheme://host[:port] without a path", "for example https://chat.example")
    return text.lower()


def store(text: str) -> str:
    if text == "memory":
        return text
    if not re.match(r"rediss?://[^/]", text):
        raise BadForm("must be 'memory' or redis://host:port/db")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadForm(f"is not a URL: {_why(error)}") from None
    if not host or port == 0:
        raise BadForm("names no host and port that can be connected to")
    if not re.fullmatch(r"/?|/\d+", parts.path) or "?" in text or "#" in text:
        raise BadForm("must end in the port or the number of a database", "write it like redis://127.0.0.1:6379/0")
    return text


def split_command(text: str) -> tuple[str, ...]:
    """Split a command like a POSIX shell would; nothing is expanded."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        what = "a quote is not closed" if "quotation" in str(error) else "it ends in a lone backslash"
        raise BadForm(f"cannot be split into words: {what}", "or write the command as a list") from None


FORMS: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {
        "url": base_url,
        "path": url_path,
        "path_or_empty": url_path_or_empty,
        "signal": signal_name,
        "ready_check": ready_check,
        "equality": equality,
        "name": name,
        "header": header_value,
        "env": env_value,
        "origin": origin,
        "store": store,
    }
)

# The formats of a mapping's own keys, by the format of its values.
NAME_FORMS: Mapping[str, Callable[[str], str]] = MappingProxyType({"header": header_name, "env": env_name})

# What a JSON Schema can say of them.
PATTERNS: Mapping[str, str] = MappingProxyType(
    {
        "url": "^[Hh][Tt][Tt][Pp][Ss]?://[^/?#@\\s]+(/[^?#\\s]*)?$",
        "path": "^/[^#\\s]*$",
        "path_or_empty": "^(/[^#\\s]*)?$",
        "ready_check": "^(model:.+|.+==.*)?$",
        "equality": "^(.+==.*)?$",
        "name": "^\\S(.*\\S)?$",
        "origin": "^[^/?#@*\\s]+://[^/?#@*\\s]+$",
        "store": "^(memory|rediss?://[^/].*)$",
    }
)


def is_loopback(host: str) -> bool:
    """Whether a host is surely this machine."""
    if host.lower() == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
