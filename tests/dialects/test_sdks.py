"""The official Python SDKs as judges of what is translated for them, keep-alives between all events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import ollama
import openai
import pytest

from dialects.golden_kit import transcripts
from dialects.translating_server import scripted

ALL = transcripts()
HI: Any = [{"role": "user", "content": "Hi"}]
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}


def streams(client: str) -> list[str]:
    """The transcripts of whole streams for this client."""
    return [k for k, one in ALL.items() if one["client"] == client and "stream" in one and "failure" not in one]


def text_in(name: str, *keys: str) -> str:
    """All text of this kind that a transcript's client gets."""
    return "".join(piece for event in ALL[name]["events"] for piece in _strings(event, keys))


def _strings(said: Any, keys: tuple[str, ...]) -> list[str]:
    if isinstance(said, list):
        return [s for item in said for s in _strings(item, keys)]
    if not isinstance(said, dict):
        return []
    own = [v for k, v in said.items() if k in keys and isinstance(v, str)]
    return own + [s for v in said.values() for s in _strings(v, keys)]


# --- Ollama


@asynccontextmanager
async def llama(url: str) -> AsyncIterator[ollama.AsyncClient]:
    client = ollama.AsyncClient(url, verify=False, trust_env=False)
    try:
        yield client
    finally:
        await client.close()


@pytest.mark.parametrize("name", [n for n in streams("ollama") if ALL[n]["path"] == "/api/chat"])
async def test_the_ollama_sdk_reads_every_stream(name: str) -> None:
    one = ALL[name]
    async with scripted(one["engine"][0], one["stream"]) as server, llama(server.url) as client:
        parts = [p async for p in await client.chat("m", HI, stream=True)]
    assert "".join(p.message.content or "" for p in parts) == text_in(name, "content")
    assert "".join(p.message.thinking or "" for p in parts) == text_in(name, "thinking")
    calls = [c.function for p in parts for c in p.message.tool_calls or []]
    wanted = [c["function"] for e in one["events"] for c in e["message"].get("tool_calls", [])]
    assert [(c.name, c.arguments) for c in calls] == [(w["name"], w["arguments"]) for w in wanted]
    assert [p.done for p in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count == one["events"][-1].get("eval_count")


@pytest.mark.parametrize("name", [n for n in streams("ollama") if ALL[n]["path"] == "/api/generate"])
async def test_the_ollama_sdk_reads_every_stream_of_generate(name: str) -> None:
    one = ALL[name]
    asked = {key: one["request"][key] for key in ("raw", "suffix") if key in one["request"]}
    script = scripted(one["engine"][0], one["stream"], has_infill=one.get("infill", False))
    async with script as server, llama(server.url) as client:
        parts = [p async for p in await client.generate("m", "Hi", **asked, stream=True)]
    assert "".join(p.response for p in parts) == text_in(name, "response")
    assert parts[-1].done


async def test_the_ollama_sdk_sends_what_is_translated_and_reads_the_answer() -> None:
    says = {
        "model": "served",
        "choices": [
            {
                "finish_reason": "tool_calls",
                "message": {
                    "content": None,
                    "reasoning": "hm",
                    "tool_calls": [{"id": "c1", "function": {"name": "weather", "arguments": '{"city":"Ulm"}'}}],
                },
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }
    async with scripted("openai", says) as server, llama(server.url) as client:
        messages: Any = [{"role": "user", "content": "See", "images": [b"\x89PNG\r\n\x1a\n"]}]
        answer = await client.chat(
            "m", messages, tools=[TOOL], think=True, format=WEATHER, options={"num_predict": 9}, keep_alive="5m"
        )
        path, body = server.sent[0]
    assert answer.message.tool_calls is not None
    assert answer.message.tool_calls[0].function.arguments == {"city": "Ulm"}
    assert (answer.message.thinking, answer.prompt_eval_count, answer.eval_count) == ("hm", 3, 2)
    assert path == "/v1/chat/completions"
    assert body["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert body["response_format"]["json_schema"]["schema"] == WEATHER
    assert (body["max_tokens"], body["stream"], "keep_alive" in body) == (9, False, False)


async def test_the_ollama_sdk_reads_embeddings() -> None:
    async with (
        scripted("openai", {"data": [{"index": 0, "embedding": [3.0, 4.0]}]}) as server,
        llama(server.url) as client,
    ):
        assert (await client.embed("m", "a")).embeddings == [[0.6, 0.8]]
        assert (await client.embeddings("m", "a")).embedding == [3.0, 4.0]


async def test_the_ollama_sdk_raises_before_and_amid_a_stream() -> None:
    async with scripted("openai", (503, b'{"detail":"busy"}')) as server, llama(server.url) as client:
        with pytest.raises(ollama.ResponseError, match="busy") as early:
            await client.chat("m", HI)
        assert early.value.status_code == 503
    failing = ALL["c3-openai-stream-to-ollama: an error in the stream"]["stream"]
    async with scripted("openai", failing) as server, llama(server.url) as client:
        with pytest.raises(ollama.ResponseError, match="boom"):
            _ = [p async for p in await client.chat("m", HI, stream=True)]


async def test_the_ollama_sdk_is_told_what_cannot_be_translated() -> None:
    async with scripted("openai", {}) as server, llama(server.url) as client:
        with pytest.raises(ollama.ResponseError, match="'template' cannot be passed on") as refused:
            await client.generate("m", "Hi", template="x")
    assert refused.value.status_code == 400


# --- Anthropic


def claude(url: str) -> anthropic.AsyncAnthropic:
    http = anthropic.DefaultAsyncHttpxClient(verify=False, trust_env=False)
    return anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0, http_client=http)


@pytest.mark.parametrize("name", streams("anthropic"))
async def test_the_anthropic_sdk_puts_every_stream_together(name: str) -> None:
    one = ALL[name]
    async with (
        scripted(one["engine"][0], one["stream"]) as server,
        claude(server.url) as client,
        client.messages.stream(model="m", max_tokens=50, messages=HI) as stream,
    ):
        message = await stream.get_final_message()
    starts = [e["content_block"]["type"] for e in one["events"] if e["type"] == "content_block_start"]
    assert [b.type for b in message.content] == starts
    said = {"text": "", "thinking": "", "tool_use": []}
    for block in message.content:
        if block.type == "tool_use":
            said["tool_use"].append(block.input)
        elif block.type in ("text", "thinking"):
            said[block.type] += getattr(block, block.type)
    assert said["text"] == text_in(name, "text")
    assert said["thinking"] == text_in(name, "thinking")
    assert all(isinstance(given, dict) for given in said["tool_use"])
    end = one["events"][-2]
    assert (message.stop_reason, message.stop_sequence) == (end["delta"]["stop_reason"], end["delta"]["stop_sequence"])
    assert message.usage.output_tokens == end["usage"]["output_tokens"]


async def test_the_anthropic_sdk_reads_arguments_of_calls_that_took_turns() -> None:
    name = "c9-openai-stream-to-anthropic: parallel calls that take turns: the second waits"
    async with (
        scripted("openai", ALL[name]["stream"]) as server,
        claude(server.url) as client,
        client.messages.stream(model="m", max_tokens=50, messages=HI) as stream,
    ):
        message = await stream.get_final_message()
    assert [b.input for b in message.content if b.type == "tool_use"] == [{"city": "Ulm"}, {"zone": 1}]


@pytest.mark.parametrize("name", [n for n, o in ALL.items() if o["client"] == "anthropic" and "shown" in o])
async def test_the_anthropic_sdk_reads_every_answer(name: str) -> None:
    one = ALL[name]
    async with scripted(one["engine"][0], one["answer"]) as server, claude(server.url) as client:
        message = await client.messages.create(model="m", max_tokens=50, messages=HI)
    assert [b.type for b in message.content] == [b["type"] for b in one["shown"]["content"]]
    assert message.stop_reason == one["shown"]["stop_reason"]
    assert message.usage.input_tokens == one["shown"]["usage"]["input_tokens"]


async def test_the_anthropic_sdk_raises_before_and_amid_a_stream() -> None:
    refusal = (429, b'{"error":{"message":"slow down","code":429}}')
    async with scripted("openai", refusal) as server, claude(server.url) as client:
        with pytest.raises(anthropic.RateLimitError, match="slow down"):
            await client.messages.create(model="m", max_tokens=5, messages=HI)
    failing = ALL["c9-openai-stream-to-anthropic: an error amid the stream"]["stream"]
    async with scripted("openai", failing) as server, claude(server.url) as client:
        with pytest.raises(anthropic.APIStatusError, match="boom"):
            _ = [e async for e in await client.messages.create(model="m", max_tokens=5, messages=HI, stream=True)]


async def test_the_anthropic_sdk_is_told_what_cannot_be_translated() -> None:
    pdf: Any = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBE"}}
    async with scripted("openai", {}) as server, claude(server.url) as client:
        with pytest.raises(anthropic.BadRequestError, match="takes documents only as text"):
            await client.messages.create(model="m", max_tokens=5, messages=[{"role": "user", "content": [pdf]}])


# --- OpenAI


def gpt(url: str) -> openai.AsyncOpenAI:
    http = openai.DefaultAsyncHttpxClient(verify=False, trust_env=False)
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0, http_client=http)


@pytest.mark.parametrize("name", [n for n in streams("openai") if ALL[n]["path"] == "/v1/chat/completions"])
async def test_the_openai_sdk_reads_every_stream(name: str) -> None:
    one = ALL[name]
    async with scripted(one["engine"][0], one["stream"]) as server, gpt(server.url) as client:
        stream = await client.chat.completions.create(model="m", messages=HI, stream=True)
        chunks = [chunk async for chunk in stream]
    assert all(chunk.choices for chunk in chunks), "usage was not asked for"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == text_in(name, "content")
    calls = [call for c in chunks for call in c.choices[0].delta.tool_calls or []]
    assert "".join(call.function.arguments or "" for call in calls if call.function) == text_in(name, "arguments")
    ends = [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason]
    assert ends == [e["choices"][0]["finish_reason"] for e in one["events"][:-1] if _is_end(e)]
    assert len({(c.id, c.created, c.model) for c in chunks}) == 1


def _is_end(event: Any) -> bool:
    return bool(event["choices"]) and event["choices"][0]["finish_reason"] is not None


async def test_the_openai_sdk_gets_usage_where_it_asks() -> None:
    name = "c3-ollama-stream-to-openai: text, without usage unasked"
    async with scripted("ollama", ALL[name]["stream"]) as server, gpt(server.url) as client:
        stream = await client.chat.completions.create(
            model="m", messages=HI, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert [c.usage.total_tokens for c in chunks if c.usage] == [17]


async def test_the_openai_sdk_decodes_embeddings_of_ollama() -> None:
    async with scripted("ollama", {"embeddings": [[0.5, -2.0]]}) as server, gpt(server.url) as client:
        answer = await client.embeddings.create(model="m", input="a")
    assert list(answer.data[0].embedding) == [0.5, -2.0]


@pytest.mark.parametrize("engine", ["ollama", "anthropic"])
async def test_the_openai_sdk_raises_amid_a_stream(engine: str) -> None:
    failing = {
        "ollama": ALL["c3-ollama-stream-to-openai: an error line"],
        "anthropic": ALL["c9-anthropic-stream-to-openai: an error event"],
    }[engine]
    async with scripted(engine, failing["stream"]) as server, gpt(server.url) as client:
        with pytest.raises(openai.APIError, match=r"terminated|Overloaded"):
            _ = [c async for c in await client.chat.completions.create(model="m", messages=HI, stream=True)]


async def test_the_openai_sdk_speaks_with_tools_to_anthropic() -> None:
    one = ALL["c8-anthropic-answer-to-openai: thinking, text, calls, usage"]
    async with scripted("anthropic", one["answer"]) as server, gpt(server.url) as client:
        answer = await client.chat.completions.create(model="m", messages=HI, tools=[TOOL])
    call = answer.choices[0].message.tool_calls
    assert call is not None
    assert call[0].type == "function"
    assert call[0].function.arguments == '{"city":"Ulm"}'
