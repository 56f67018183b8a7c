"""The status page: three static files, read once, that may load nothing from elsewhere and run no inline script.

It is open to all and empty of data: what it shows it reads from `/events`, with the key that its reader types in.
"""

from __future__ import annotations

from importlib.resources import files

from aiohttp import hdrs, web

from enginerouter.web.edge import EdgeCall

SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class StatusPage:
    """`GET /` and the files of the page."""

    def __init__(self) -> None:
        folder = files("enginerouter.web").joinpath("page")
        self._page, self._style, self._script = (
            folder.joinpath(name).read_bytes() for name in ("index.html", "page.css", "page.js")
        )

    async def root(self, call: EdgeCall) -> web.StreamResponse:
        """The page for browsers; what an Ollama client looks for, for everybody else."""
        if "text/html" in call.request.headers.get(hdrs.ACCEPT, ""):
            return _file(self._page, "text/html")
        return web.Response(text="Ollama is running", headers={hdrs.VARY: hdrs.ACCEPT})

    async def style(self, call: EdgeCall) -> web.StreamResponse:
        """A part of the page."""
        return _file(self._style, "text/css")

    async def script(self, call: EdgeCall) -> web.StreamResponse:
        """A part of the page."""
        return _file(self._script, "text/javascript")


def _file(body: bytes, kind: str) -> web.Response:
    return web.Response(body=body, content_type=kind, charset="utf-8", headers={**SECURITY, hdrs.VARY: hdrs.ACCEPT})
