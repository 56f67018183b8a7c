"""Is it ready? One probe, its rule, and the pace of asking.

The rule is a pure function of the answer; the pace a pure function of the time since the start. Probes use a small
HTTP session of their own: no proxies of the environment, no cookies, no redirects, no connection kept.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from enginerouter.errors import printable

_LONGEST_BODY = 1024 * 1024
_SHORTEST_GAP_S = 0.02
_LONGEST_GAP_S = 0.25


@dataclass(frozen=True, slots=True)
class ReadyRule:
    """`url` empty: an accepted connection is enough. `check`: `model:<id>`, `key==value` (dotted) or empty."""

    url: str
    status: int
    check: str
    probe_timeout_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What one probe saw. `answered`: somebody spoke HTTP there (or accepted, where the rule wants no more)."""

    is_ready: bool
    answered: bool
    saw: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back of a call. `status` 0: nothing; `document`: its JSON, or None; `saw`: all of it in words.

    `is_late`: nothing came in time, which a busy server does too.
    """

    status: int
    document: Any
    saw: str
    is_late: bool = False

    @property
    def is_ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def outcome(self) -> str:
        """How it went, without the text of the answer: that is never logged."""
        return f"status {self.status}" if self.status else self.saw


def gap_s(elapsed_s: float) -> float:
    """Pause between two probes: a twentieth of the time since the start, so that waiting costs at most that much."""
    return min(_LONGEST_GAP_S, max(_SHORTEST_GAP_S, elapsed_s / 20))


def judge(rule: ReadyRule, status: int, body: bytes) -> Answer:
    if status != rule.status:
        return Answer(False, True, f"status {status} instead of {rule.status}")
    if not rule.check:
        return Answer(True, True, f"status {status}")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return Answer(False, True, f"status {status}, but no JSON to look for {rule.check!r} in")
    if passes(rule.check, document):
        return Answer(True, True, f"status {status} and {rule.check!r}")
    return Answer(False, True, f"status {status}, but not {rule.check!r}")


def passes(check: str, document: Any) -> bool:
    key, equals, value = check.partition("==")
    if equals:
        return any(_same(found, value.strip()) for found in _at(document, key.strip().split(".")))
    kind, _, wanted = check.partition(":")
    return kind.strip() == "model" and wanted.strip() in _model_ids(document)


def _at(document: Any, path: list[str]) -> list[Any]:
    """All values at a dotted path; a list on the way stands for each of its elements."""
    if isinstance(document, list):
        return [found for element in document for found in _at(element, path)]
    if not path:
        return [document]
    if not isinstance(document, dict):
        return []
    whole = ".".join(path)
    if whole in document:  # a key may hold dots itself
        return _at(document[whole], [])
    return _at(document[path[0]], path[1:]) if path[0] in document else []


def _same(found: Any, wanted: str) -> bool:
    """As written in JSON (`true`, `null`) or as Python prints it, which older configs rely on."""
    if isinstance(found, str):
        return found == wanted
    return wanted in (str(found), json.dumps(found))


def _model_ids(document: Any) -> set[str]:
    """Ids in a top-level list, the object itself, or its `data` or `models` list."""
    entries: list[Any] = document if isinstance(document, list) else [document]
    if isinstance(document, dict):
        for key in ("data", "models"):
            listed = document.get(key)
            entries += listed if isinstance(listed, list) else []
    ids = {entry for entry in entries if isinstance(entry, str)}
    for entry in entries:
        if isinstance(entry, dict):
            ids |= {v for k in ("id", "model", "name") if isinstance(v := entry.get(k), str)}
    return ids


class Prober:
    """Owns the HTTP session that an engine's own calls use."""

    def __init__(self, control_headers: Mapping[str, str], api_key: str | None) -> None:
        self._headers = {"Accept-Encoding": "identity"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._headers |= control_headers
        self._session: aiohttp.ClientSession | None = None

    async def probe(self, rule: ReadyRule, host: str, port: int, timeout_s: float) -> Answer:
        """Ask once. Never raises but when cancelled."""
        try:
            async with asyncio.timeout(timeout_s):
                if not rule.url:
                    return await _knock(host, port)
                return await self._ask(rule)
        except TimeoutError:
            return Answer(False, False, f"no answer within {timeout_s:.3g} s")
        except (aiohttp.ClientConnectorError, ConnectionRefusedError):
            return Answer(False, False, "connection refused")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Answer(False, True, printable(f"{type(error).__name__}: {error}"))

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def warm_up(self, address: str, model: str, timeout_s: float) -> Reply:
        """Ask for one token, so that the first client does not pay for what an engine puts off."""
        body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
        return await self.call("POST", f"{address}/v1/chat/completions", body, timeout_s=timeout_s)

    async def call(self, method: str, url: str, body: object = None, *, timeout_s: float) -> Reply:
        """One call of ours to the engine. Never raises but when cancelled."""
        try:
            async with asyncio.timeout(timeout_s):
                options: dict[str, Any] = {} if body is None else {"json": body}
                asking = self._open().request(method, url, headers=self._headers, allow_redirects=False, **options)
                async with asking as response:
                    raw = await response.content.read(_LONGEST_BODY)
                    while more := await response.content.read(_LONGEST_BODY):
                        raw = (raw + more)[:_LONGEST_BODY]
        except TimeoutError:
            return Reply(0, None, f"nothing within {timeout_s:.3g} s", is_late=True)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Reply(0, None, printable(f"{type(error).__name__}: {error}"))
        text = raw[:200].decode(errors="replace")
        return Reply(response.status, _json(raw), printable(f"status {response.status} {text}".rstrip()))

    async def glance(self, url: str, *, timeout_s: float) -> Reply:
        """GET, and no more than the status is read: lists of models can be long. Never raises but when cancelled."""
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._open().get(url, headers=self._headers, allow_redirects=False) as response,
            ):
                return Reply(response.status, None, f"status {response.status}")
        except TimeoutError:
            return Reply(0, None, f"no answer within {timeout_s:.3g} s", is_late=True)
        except aiohttp.ClientConnectorError as error:
            return Reply(0, None, printable(f"it cannot be reached: {error.strerror or error}"))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Reply(0, None, printable(f"{type(error).__name__}: {error}"))

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
                trust_env=False,
            )
        return self._session

    async def _ask(self, rule: ReadyRule) -> Answer:
        async with self._open().get(rule.url, headers=self._headers, allow_redirects=False) as response:
            body = await response.content.read(_LONGEST_BODY) if rule.check else b""
            while rule.check and len(body) < _LONGEST_BODY:
                more = await response.content.read(_LONGEST_BODY - len(body))
                if not more:
                    break
                body += more
            return judge(rule, response.status, body)


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


async def _knock(host: str, port: int) -> Answer:
    _reader, writer = await asyncio.open_connection(host, port)
    writer.close()
    await writer.wait_closed()
    return Answer(True, True, "a connection")
