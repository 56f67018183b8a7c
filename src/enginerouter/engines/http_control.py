"""The router's own calls to an engine's HTTP API: load, unload, list, health.

One small client: no proxies of the environment, no cookies, no redirects, no connection kept, every call bounded. What
an engine says is judged by plain functions, because engines answer 200 to nonsense and write errors in eight shapes
(facts: `{"error": {…}}`, `{"error": "…"}`, flat `{"object": "error", "message": …}`, `{"detail": "…"}`, a list of
`{loc, msg}` in `detail`, `{"detail": {"msg": …}}`, Anthropic's `{"type": "error", …}`, no body or HTML).
"""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from enginerouter.errors import printable

_LONGEST_BODY = 8 * 1024 * 1024
_LONGEST_SENTENCE = 300
# Of the time for a call: whoever has not taken the connection by then is told apart from one who does not answer.
_CONNECT_SHARE = 0.8
# A host that is not there, or that no way leads to.
_NO_WAY = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.EADDRNOTAVAIL})


class ControlFailed(Exception):
    """A call that did not do what it should. `sentence` names the URL and says what happened.

    `is_refused`: nobody listens there, so no server runs and none of its models is in memory.
    `is_absent`: that, or there is no such host, or no way to it.
    `is_unconnected`: it is absent, or no connection came about in time.
    `is_mistaken`: somebody answers, but not as the server would: the address, a path or a key is wrong.
    `is_late`: no whole answer came in time.
    `has_ended` False: what was asked for may still go on.
    """

    def __init__(
        self,
        sentence: str,
        *,
        is_refused: bool = False,
        is_absent: bool = False,
        is_unconnected: bool = False,
        is_mistaken: bool = False,
        is_late: bool = False,
        has_ended: bool = True,
    ) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.is_refused = is_refused
        self.is_absent = is_absent or is_refused
        self.is_unconnected = is_unconnected or self.is_absent
        self.is_mistaken = is_mistaken
        self.is_late = is_late
        self.has_ended = has_ended


@dataclass(frozen=True, slots=True)
class Said:
    """One whole answer. `document` is its JSON, or None."""

    url: str
    status: int
    content_type: str
    body: bytes
    document: Any

    def problem(self) -> str | None:
        """What is wrong with this answer, in words; None for a success that says nothing of an error."""
        if self.status >= 400:
            return f"{self.url} answered {self.status}: {sentence_of(self.document, self.body)}"
        if self.status >= 300:
            return f"{self.url} answered {self.status}, and redirects are not followed"
        for document in self.documents():
            if (told := error_told(document)) is not None:
                return f"{self.url} answered {self.status} with an error: {told}"
        return None

    def documents(self) -> list[Any]:
        """Its JSON; of an event stream, that of each event."""
        return [self.document] if self.content_type != "text/event-stream" else list(_events(self.body))

    def raise_problem(self) -> None:
        if (problem := self.problem()) is not None:
            # A server in trouble says 5xx, of itself in JSON; HTML is a proxy's, or somebody else's.
            raise ControlFailed(problem, is_mistaken=self.status < 500 or self.body.lstrip()[:1] == b"<")


def error_told(document: Any) -> str | None:
    """The error that a document is, or None. An answer of status 200 may be one, and only saying so tells."""
    if isinstance(document, list) and len(document) == 1 and isinstance(document[0], dict):
        document = document[0] if "error" in document[0] else None  # Google wraps its errors
    if not isinstance(document, dict):
        return None
    is_error = (
        bool(document.get("error"))
        or document.get("object") == "error"
        or document.get("type") == "error"
        or document.get("status") == "error"
    )
    return sentence_of(document, b"") if is_error else None


def printable_start(body: bytes) -> str:
    """The first words of a body, quoted on one line."""
    return repr(printable(body[:80].decode("utf-8", "replace"))) if body else "nothing"


def sentence_of(document: Any, body: bytes) -> str:
    """What an error body says, as one printable line, whatever its shape. Never raises."""
    said = _text_in(document)
    if said is None and document is None:
        text = body[:2000].decode("utf-8", "replace").strip()
        said = "a page of HTML" if text.startswith("<") else text
    if said is None:
        said = body[:2000].decode("utf-8", "replace").strip() if body else ""
    return printable(said, _LONGEST_SENTENCE) or "nothing more"


def _text_in(document: Any, depth: int = 5) -> str | None:
    if isinstance(document, str):
        return document or None
    if depth == 0:
        return None
    if isinstance(document, list):
        parts = [text for entry in document[:5] if (text := _text_in(entry, depth - 1)) is not None]
        return "; ".join(parts) or None
    if not isinstance(document, dict):
        return None
    for key in ("error", "detail", "message", "msg"):
        if (text := _text_in(document.get(key), depth - 1)) is not None:
            where = document.get("loc")
            place = ".".join(str(step) for step in where) if isinstance(where, list) else ""
            return f"{place}: {text}" if place and key == "msg" else text
    return None


def _events(body: bytes) -> Iterator[Any]:
    """The JSON documents of an event stream, whatever ends its lines."""
    for line in body.splitlines():
        if line.startswith(b"data:"):
            yield parsed(line[5:])


def parsed(body: bytes) -> Any:
    """The JSON of a body, or None."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def filled(template: Any, model: str) -> Any:
    """`template` with `{model}` replaced in every text, at any depth."""
    if isinstance(template, str):
        return template.replace("{model}", model)
    if isinstance(template, Mapping):
        return {key: filled(value, model) for key, value in template.items()}
    if isinstance(template, list | tuple):
        return [filled(value, model) for value in template]
    return template


def headers_of(control_headers: Mapping[str, str], api_key: str | None) -> dict[str, str]:
    """What our own calls carry. What is configured replaces ours, however it is written."""
    ours = {"Accept-Encoding": "identity"}
    if api_key:
        ours["Authorization"] = f"Bearer {api_key}"
    given = {name.lower() for name in control_headers}
    return {name: value for name, value in ours.items() if name.lower() not in given} | dict(control_headers)


class ControlClient:
    """Calls to one engine. `base_url` has no slash at its end; paths are put after it as they are.

    Without a `base_url` a path is a whole URL: where an engine listens may be known only when it runs.
    """

    def __init__(self, base_url: str, control_headers: Mapping[str, str], api_key: str | None) -> None:
        self.base_url = base_url
        self._session: aiohttp.ClientSession | None = None
        self.configure(control_headers, api_key)

    def configure(self, control_headers: Mapping[str, str], api_key: str | None) -> None:
        """Send these with every call from now on."""
        self._headers = headers_of(control_headers, api_key)

    async def ask(self, method: str, path: str, *, timeout_s: float, body: Any = None, reads: bool = True) -> Said:
        """Call and read the whole answer, whatever its status. Raises ControlFailed if there is none.

        `reads` False: its status is enough.
        """
        url = self.base_url + path
        where = printable(url)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._ask(method, url, body, timeout_s * _CONNECT_SHARE, reads=reads)
        except TimeoutError as error:
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                sentence = f"{where} cannot be reached within {timeout_s:.3g} s"
                raise ControlFailed(sentence, is_unconnected=True) from None
            sentence = f"{where} gave no whole answer within {timeout_s:.3g} s"
            raise ControlFailed(sentence, is_late=True, has_ended=False) from None
        except aiohttp.ClientConnectorError as error:
            is_refused = error.os_error.errno == errno.ECONNREFUSED
            is_absent = isinstance(error, aiohttp.ClientConnectorDNSError) or error.os_error.errno in _NO_WAY
            why = "connection refused" if is_refused else printable(str(error))
            sentence = f"{where} cannot be reached: {why}"
            raise ControlFailed(sentence, is_refused=is_refused, is_absent=is_absent) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            what = printable(f"{type(error).__name__}: {error}")
            is_other = isinstance(error, aiohttp.ClientResponseError)  # it speaks something else
            sentence = f"{where} did not answer in HTTP ({what})"
            raise ControlFailed(sentence, is_mistaken=is_other, has_ended=False) from error

    async def get(self, path: str, *, timeout_s: float) -> Said:
        return await self.ask("GET", path, timeout_s=timeout_s)

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _ask(self, method: str, url: str, body: Any, connect_s: float, *, reads: bool) -> Said:
        limits = aiohttp.ClientTimeout(total=None, connect=connect_s)
        async with self._open().request(
            method, url, json=body, headers=self._headers, allow_redirects=False, timeout=limits
        ) as response:
            if not reads:
                return Said(printable(url), response.status, response.content_type, b"", None)
            raw = b""
            async for piece in response.content.iter_any():
                raw += piece
                if len(raw) > _LONGEST_BODY:
                    raise ValueError(f"an answer of more than {_LONGEST_BODY} bytes")
            return Said(printable(url), response.status, response.content_type, raw, parsed(raw))

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
                trust_env=False,
            )
        return self._session
