"""A chain before scripted targets: this box's engine first, then a cloud, then a small always-on box."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from engine_server import FakeEngineServer, Script, usual
from http_servers import say
from router_kit import Answer, MakeRouter, RouterUnderTest

from enginerouter.config.engines import Remote
from enginerouter.config.model import Health

CHAIN = ("a", "cloud/big", "lxc/small")
CLOUD_KEY = "cloud-key"


def refused(status: int, message: str = "no", **more: Any) -> Script:
    """An error answer in OpenAI's shape."""
    return say({"error": {"message": message, "type": "some_error", "param": None, **more}}, status)


def reasons(answer: Answer) -> list[tuple[str, str]]:
    return [(entry["engine"], entry["reason"]) for entry in answer.error["attempts"]]


class Boxes:
    """The servers that are not on this machine."""

    def __init__(self) -> None:
        self.cloud = FakeEngineServer("cloud")
        self.lxc = FakeEngineServer("lxc")

    def engines(self, **more: Any) -> list[Remote]:
        return [
            self.remote(self.cloud, "big", api_key=CLOUD_KEY, **more),
            self.remote(self.lxc, "small", **more),
        ]

    @staticmethod
    def remote(server: FakeEngineServer, *models: str, **more: Any) -> Remote:
        base_url = f"http://127.0.0.1:{server.port}"
        return Remote(name=server.name, base_url=base_url, served_models=models, **more)

    async def router(
        self, make_router: MakeRouter, *, chain: tuple[str, ...] = CHAIN, remote: dict[str, Any] | None = None,
        locals_: tuple[str, ...] = ("a",), settings: dict[str, Any] | None = None, **alias: Any,
    ) -> RouterUnderTest:  # fmt: skip
        """With the alias `best` over them; `alias` are its settings."""
        return await make_router(
            locals_,
            http=self.engines(**(remote or {})),
            aliases={"best": {"chain": chain, **alias}},
            **{"health": Health(enabled=False), **(settings or {})},
        )


@contextlib.asynccontextmanager
async def boxes() -> AsyncIterator[Boxes]:
    made = Boxes()
    await made.cloud.listen()
    await made.lxc.listen()
    try:
        yield made
    finally:
        await made.cloud.stop()
        await made.lxc.stop()


def saying(server: FakeEngineServer, script: Script | None) -> None:
    """What a server answers from now on; None: as a good one does."""
    server.script = script if script is not None else usual(server.name)
