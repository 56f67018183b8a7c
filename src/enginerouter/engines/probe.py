"""Is it ready? One probe, its rule, and the pace of asking.

The rule is a pure function of the answer; the pace a pure function of the time since the start.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from enginerouter.engines.http_control import ControlClient, ControlFailed
from enginerouter.errors import printable

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
    """The calls to an engine whose address is known only when it runs. What goes wrong is an answer, not an error."""

    def __init__(self, control_headers: Mapping[str, str], api_key: str | None) -> None:
        self._client = ControlClient("", control_headers, api_key)

    def configure(self, control_headers: Mapping[str, str], api_key: str | None) -> None:
        """Send these with every call from now on."""
        self._client.configure(control_headers, api_key)

    async def probe(self, rule: ReadyRule, host: str, port: int, timeout_s: float) -> Answer:
        """Ask once. Never raises but when cancelled."""
        try:
            if not rule.url:
                async with asyncio.timeout(timeout_s):
                    return await _knock(host, port)
            said = await self._client.ask("GET", rule.url, timeout_s=timeout_s, reads=bool(rule.check))
        except TimeoutError:
            return Answer(False, False, f"no answer within {timeout_s:.3g} s")
        except OSError as error:
            return Answer(False, False, printable(f"{type(error).__name__}: {error}"))
        except ControlFailed as failed:
            return Answer(False, not (failed.is_late or failed.is_unconnected), _in_short(failed, timeout_s))
        return judge(rule, said.status, said.body)

    async def call(self, method: str, url: str, body: object = None, *, timeout_s: float) -> Reply:
        """One call of ours to the engine. Never raises but when cancelled."""
        return await reply(self._client, method, url, body, timeout_s=timeout_s)

    async def warm_up(self, address: str, model: str, timeout_s: float) -> Reply:
        return await warm_up(self._client, address, model, timeout_s)

    async def glance(self, url: str, *, timeout_s: float) -> Reply:
        """GET, and no more than the status is read: lists of models can be long. Never raises but when cancelled."""
        return await reply(self._client, "GET", url, timeout_s=timeout_s, reads=False)

    async def close(self) -> None:
        await self._client.close()


async def reply(
    client: ControlClient, method: str, path: str, body: object = None, *, timeout_s: float, reads: bool = True
) -> Reply:
    """Never raises but when cancelled."""
    try:
        said = await client.ask(method, path, body=body, timeout_s=timeout_s, reads=reads)
    except ControlFailed as failed:
        return Reply(0, None, _in_short(failed, timeout_s), is_late=failed.is_late)
    text = said.body[:200].decode(errors="replace")
    return Reply(said.status, said.document, printable(f"status {said.status} {text}".rstrip()))


async def warm_up(client: ControlClient, address: str, model: str, timeout_s: float) -> Reply:
    """Ask for one token, so that the first client does not pay for what an engine puts off. `address`: of a client
    that has none itself."""
    body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
    return await reply(client, "POST", f"{address}/v1/chat/completions", body, timeout_s=timeout_s)


def _in_short(failed: ControlFailed, timeout_s: float) -> str:
    """Without the URL, which whoever quotes this has named already."""
    if failed.is_late:
        return f"no answer within {timeout_s:.3g} s"
    return "connection refused" if failed.is_refused else failed.sentence


async def _knock(host: str, port: int) -> Answer:
    _reader, writer = await asyncio.open_connection(host, port)
    writer.close()
    await writer.wait_closed()
    return Answer(True, True, "a connection")
