"""A gateway's chains, imported, are walked: the first target that can serve does, the default where none is named."""

from __future__ import annotations

from pathlib import Path

from http_servers import OllamaDaemon, Provider
from router_kit import RouterUnderTest, chat

from enginerouter.config.load import load_text
from enginerouter.setup.importing import import_file
from enginerouter.swap.pick import Picked
from enginerouter.web.app import Router

ALIASES = """
aliases:
  house/fast: {description: Short answers, chain: [ollama/phi:3b, groq/llama-3.1-8b, openrouter/meta/llama]}
  house/cloud: {chain: [openrouter/meta/llama]}
default: house/fast
"""


async def test_a_gateways_chains_go_on_past_what_is_down_and_past_what_has_no_key(tmp_path: Path) -> None:
    daemon, provider = OllamaDaemon("phi:3b"), Provider()
    await daemon.listen()
    await provider.listen()
    file = tmp_path / "aliases.yaml"
    file.write_text(ALIASES)
    text = import_file(file, tmp_path / "config.yaml", environ={}).text
    text = text.replace("http://127.0.0.1:11434", daemon.url).replace("https://openrouter.ai/api/v1", provider.url)
    environ = {"OPENROUTER_API_KEY": "provider-key"}
    config = load_text(text.replace("port: 8077", "port: 0\nlog_file: null"), base_dir=tmp_path, environ=environ).config
    router = Router(config, memory=Picked("none"))
    await router.start()
    under_test = RouterUnderTest(router, {}, None)  # type: ignore[arg-type]
    try:
        for name in ("house/fast", None):
            answer = await under_test.ask(chat(name), within_s=20)
            assert answer.header("X-EngineRouter-Resolved") == "ollama/phi:3b"
        await daemon.stop()
        answer = await under_test.ask(chat("house/fast"), within_s=20)
        assert (answer.status, answer.header("X-EngineRouter-Resolved")) == (200, "openrouter/meta/llama")
        assert {"house/fast", "house/cloud"} <= {m["id"] for m in (await under_test.get("/v1/models")).json["data"]}
    finally:
        await router.stop()
        await daemon.stop()
        await provider.stop()
