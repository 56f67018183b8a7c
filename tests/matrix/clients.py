"""The official SDKs, each as a column of the matrix: the same wishes, said and read in its own words.

A column says nothing of what a wish must come to; tests/e2e/test_matrix.py does. `None` where the SDK has no such call.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import anthropic
import ollama
import openai

HI: Any = [{"role": "user", "content": "Say hello to the people over there."}]
PICTURE = "iVBORw0KGgo="
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"answer": {"type": "integer"}},
    "required": ["answer"],
    "additionalProperties": False,
}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": CITY}}


@dataclass
class Said:
    """What an answer came to. `calls` are (name, arguments)."""

    text: str = ""
    thinking: str = ""
    calls: tuple[tuple[str, Any], ...] = ()
    tokens_in: int | None = None
    tokens_out: int | None = None
    pieces: int = 0


class Client(Protocol):
    name: str
    path: str
    # What the SDK raises, and the status that it says there.
    Error: type[Exception]

    def status_of(self, error: Exception) -> int | None: ...

    async def chat(self, model: str, *, stream: bool = False, tools: bool = False, tokens: int = 64) -> Said: ...

    async def picture(self, model: str) -> Said: ...

    async def shaped(self, model: str) -> Any: ...

    async def embed(self, model: str, texts: list[str]) -> list[list[float]] | None: ...

    async def close(self) -> None: ...


class OpenAIClient:
    name, path = "openai", "/v1/chat/completions"
    Error = openai.APIError

    def __init__(self, url: str) -> None:
        http = openai.DefaultAsyncHttpxClient(verify=False, trust_env=False)
        self._sdk = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0, http_client=http)

    def status_of(self, error: Exception) -> int | None:
        return getattr(error, "status_code", None)

    async def chat(self, model: str, *, stream: bool = False, tools: bool = False, tokens: int = 64) -> Said:
        more: dict[str, Any] = {"tools": [FUNCTION]} if tools else {}
        if not stream:
            answer = await self._sdk.chat.completions.create(model=model, messages=HI, max_tokens=tokens, **more)
            return self._said(answer)
        said, arguments, names = Said(), {}, {}
        events: Any = await self._sdk.chat.completions.create(
            model=model, messages=HI, max_tokens=tokens, stream=True, stream_options={"include_usage": True}, **more
        )
        async for event in events:
            if event.usage is not None:
                said.tokens_in, said.tokens_out = event.usage.prompt_tokens, event.usage.completion_tokens
            for choice in event.choices:
                said.pieces += 1
                said.text += choice.delta.content or ""
                said.thinking += (choice.delta.model_extra or {}).get("reasoning_content") or ""
                for call in choice.delta.tool_calls or []:
                    names[call.index] = names.get(call.index) or call.function.name
                    arguments[call.index] = arguments.get(call.index, "") + (call.function.arguments or "")
        said.calls = tuple((names[i], json.loads(arguments[i])) for i in sorted(names))
        return said

    def _said(self, answer: Any) -> Said:
        message = answer.choices[0].message
        calls = tuple((c.function.name, json.loads(c.function.arguments)) for c in message.tool_calls or [])
        thinking = (message.model_extra or {}).get("reasoning_content") or ""
        usage = answer.usage
        counts = (usage.prompt_tokens, usage.completion_tokens) if usage is not None else (None, None)
        return Said(message.content or "", thinking, calls, *counts)

    async def picture(self, model: str) -> Said:
        image: Any = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}
        messages: Any = [{"role": "user", "content": [{"type": "text", "text": "See?"}, image]}]
        return self._said(await self._sdk.chat.completions.create(model=model, messages=messages))

    async def shaped(self, model: str) -> Any:
        form: Any = {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA, "strict": True}}
        answer = await self._sdk.chat.completions.create(model=model, messages=HI, response_format=form)
        return json.loads(answer.choices[0].message.content or "")

    async def embed(self, model: str, texts: list[str]) -> list[list[float]] | None:
        return [e.embedding for e in (await self._sdk.embeddings.create(model=model, input=texts)).data]

    async def close(self) -> None:
        await self._sdk.close()


class OllamaClient:
    name, path = "ollama", "/api/chat"
    Error = ollama.ResponseError

    def __init__(self, url: str) -> None:
        self._sdk = ollama.AsyncClient(url, verify=False, trust_env=False)

    def status_of(self, error: Exception) -> int | None:
        status = getattr(error, "status_code", -1)
        return None if status == -1 else status

    async def chat(self, model: str, *, stream: bool = False, tools: bool = False, tokens: int = 64) -> Said:
        more: dict[str, Any] = {"tools": [FUNCTION]} if tools else {}
        options = {"num_predict": tokens}
        if not stream:
            return self._said([await self._sdk.chat(model, HI, options=options, **more)])
        return self._said([p async for p in await self._sdk.chat(model, HI, stream=True, options=options, **more)])

    def _said(self, parts: list[Any]) -> Said:
        assert [p.done for p in parts] == [False] * (len(parts) - 1) + [True]
        return Said(
            "".join(p.message.content or "" for p in parts),
            "".join(p.message.thinking or "" for p in parts),
            tuple((c.function.name, c.function.arguments) for p in parts for c in p.message.tool_calls or []),
            parts[-1].prompt_eval_count,
            parts[-1].eval_count,
            len(parts),
        )

    async def picture(self, model: str) -> Said:
        messages: Any = [{"role": "user", "content": "See?", "images": [base64.b64decode(PICTURE)]}]
        return self._said([await self._sdk.chat(model, messages)])

    async def shaped(self, model: str) -> Any:
        return json.loads((await self._sdk.chat(model, HI, format=SCHEMA)).message.content or "")

    async def embed(self, model: str, texts: list[str]) -> list[list[float]] | None:
        return [list(v) for v in (await self._sdk.embed(model, texts)).embeddings]

    async def close(self) -> None:
        await self._sdk.close()


class AnthropicClient:
    name, path = "anthropic", "/v1/messages"
    Error = anthropic.APIError

    def __init__(self, url: str) -> None:
        http = anthropic.DefaultAsyncHttpxClient(verify=False, trust_env=False)
        self._sdk = anthropic.AsyncAnthropic(base_url=url, api_key="-", max_retries=0, http_client=http)

    def status_of(self, error: Exception) -> int | None:
        return getattr(error, "status_code", None)

    async def chat(self, model: str, *, stream: bool = False, tools: bool = False, tokens: int = 64) -> Said:
        tool = {"name": "weather", "description": "of a city", "input_schema": CITY}
        more: dict[str, Any] = {"tools": [tool]} if tools else {}
        if not stream:
            return self._said(await self._sdk.messages.create(model=model, messages=HI, max_tokens=tokens, **more))
        pieces = 0
        async with self._sdk.messages.stream(model=model, messages=HI, max_tokens=tokens, **more) as events:
            async for event in events:
                pieces += event.type == "content_block_delta"
            said = self._said(await events.get_final_message())
        said.pieces = pieces
        return said

    def _said(self, message: Any) -> Said:
        def of(kind: str) -> list[Any]:
            return [b for b in message.content if b.type == kind]

        return Said(
            "".join(b.text for b in of("text")),
            "".join(b.thinking for b in of("thinking")),
            tuple((b.name, b.input) for b in of("tool_use")),
            message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0),
            message.usage.output_tokens,
        )

    async def picture(self, model: str) -> Said:
        source = {"type": "base64", "media_type": "image/png", "data": PICTURE}
        messages: Any = [
            {"role": "user", "content": [{"type": "text", "text": "See?"}, {"type": "image", "source": source}]}
        ]
        return self._said(await self._sdk.messages.create(model=model, messages=messages, max_tokens=64))

    async def shaped(self, model: str) -> Any:
        form: Any = {"format": {"type": "json_schema", "schema": SCHEMA}}
        message = await self._sdk.messages.create(model=model, messages=HI, max_tokens=64, output_config=form)
        return json.loads(self._said(message).text)

    async def embed(self, model: str, texts: list[str]) -> list[list[float]] | None:
        return None

    async def close(self) -> None:
        await self._sdk.close()


CLIENTS: dict[str, type[Any]] = {c.name: c for c in (OpenAIClient, OllamaClient, AnthropicClient)}


@asynccontextmanager
async def connected(name: str, url: str) -> AsyncIterator[Client]:
    client: Client = CLIENTS[name](url)
    try:
        yield client
    finally:
        await client.close()
