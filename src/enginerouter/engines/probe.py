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

    async def warm_up(self, address: str, model: str) -> int | str:
        """Ask for one token, so that the first client does not pay for what an engine puts off.

        Gives the status of the answer, or in words why there was none.
        """
        body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
        url = f"{address}/v1/chat/completions"
        try:
            async with self._open().post(url, json=body, headers=self._headers, allow_redirects=False) as response:
                await response.read()
                return response.status
        except (aiohttp.ClientError, OSError) as error:
            return printable(f"{type(error).__name__}: {error}")

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


async def _knock(host: str, port: int) -> Answer:
    _reader, writer = await asyncio.open_connection(host, port)
    writer.close()
    await writer.wait_closed()
    return Answer(True, True, "a connection")
