"""The official OpenAI SDK against a router before two real llama-servers: who answers, and how."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from real_kit import RealRouter, assert_said_by, chat, llama, pieces, said, send, stream

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRouter]:
    folder: Path = tmp_path_factory.mktemp("router")
    engines = {"red": llama("red"), "blue": llama("blue"), "embed": llama("embed", "--embeddings", "--pooling", "mean")}
    router = RealRouter.of(folder, engines, {"swap_linger_s": 0.05})
    router.start()
    yield router
    router.end()


@pytest.fixture
def client(router: RealRouter) -> Iterator[openai.OpenAI]:
    with router.client() as client:
        yield client


def test_each_model_answers_for_itself_and_swaps_happen_both_ways(router: RealRouter, client: openai.OpenAI) -> None:
    for model, other in (("red", "blue"), ("blue", "red"), ("red", "blue")):
        answer = chat(client, model)
        assert answer.model == model
        assert_said_by(model, said(answer))
        assert router.phase(model) == "ready"
        assert router.phase(other) == "cold"
    assert router.metric('swap_total{from="red",to="blue",result="ok"}') >= 1
    assert router.metric('swap_total{from="blue",to="red",result="ok"}') >= 1


def test_streams_come_from_the_right_engine_word_by_word(client: openai.OpenAI) -> None:
    for model in ("blue", "red", "blue"):
        with stream(client, model, words=20) as events:
            parts = list(pieces(events))
        assert_said_by(model, "".join(parts))
        assert len(parts) == 20


def test_headers_say_who_served_and_what_it_cost(client: openai.OpenAI) -> None:
    for is_stream in (False, True):
        for model in ("red", "blue", "blue"):
            answer = client.chat.completions.with_raw_response.create(
                model=model, messages=[{"role": "user", "content": "Hi"}], max_tokens=2, stream=is_stream
            )
            headers = answer.headers
            answer.http_response.close()
            assert headers["X-EngineRouter-Resolved"] == f"{model}/{model}"
            assert headers["X-EngineRouter-Attempts"] == "1"
            assert headers["X-Request-Id"]
            assert int(headers["X-EngineRouter-Swap-Ms"]) <= int(headers["X-EngineRouter-Queue-Ms"]) < 20_000
        # The last one asked for what was there already.
        assert headers["X-EngineRouter-Swap-Ms"] == "0"
    assert int(headers["X-EngineRouter-Queue-Ms"]) < 1000


def test_text_completions_answer_streaming_and_not(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="red", prompt="Hello", max_tokens=3)
    assert_said_by("red", whole.choices[0].text)
    with client.completions.create(model="red", prompt="Hello", max_tokens=3, stream=True) as events:
        assert_said_by("red", "".join(event.choices[0].text for event in events))


def test_responses_answer_streaming_and_not(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="blue", input="Hello", max_output_tokens=3)
    assert_said_by("blue", whole.output_text)
    with client.responses.create(model="blue", input="Hello", max_output_tokens=3, stream=True) as events:
        kinds = [event.type for event in events]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"


def test_the_stream_helper_for_responses_reads_what_llama_server_sends(client: openai.OpenAI) -> None:
    with client.responses.stream(model="blue", input="Hello", max_output_tokens=3) as events:
        found = list(events)
        whole = events.get_final_response()
    assert [event.sequence_number for event in found] == list(range(len(found)))
    assert_said_by("blue", whole.output_text)
    deltas = [event for event in found if event.type == "response.output_text.delta"]
    assert len(deltas) == 3
    assert deltas[-1].snapshot == whole.output_text


def test_a_stored_response_is_asked_of_the_engine_that_made_it_and_its_404_comes_back(
    router: RealRouter, client: openai.OpenAI
) -> None:
    """llama-server makes responses but keeps none."""
    made = client.responses.create(model="blue", input="Hello", max_output_tokens=3)
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.retrieve(made.id)
    directly = send(f"{router.engine_url('blue')}/v1/responses/{made.id}")
    assert directly.status == 404
    assert caught.value.response.content == directly.body
    assert caught.value.response.headers["X-EngineRouter-Resolved"] == "blue/blue"


def test_embeddings_come_from_the_engine_that_makes_them(router: RealRouter, client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="embed", input=["Hello there", "Goodbye"])
    assert len(answer.data) == 2
    assert all(len(one.embedding) == 64 for one in answer.data)
    assert answer.data[0].embedding != answer.data[1].embedding
    assert router.phase("embed") == "ready"


def test_what_an_engine_cannot_do_is_said_in_its_own_words(router: RealRouter) -> None:
    body = {"model": "red", "query": "who", "documents": ["a", "b"]}
    answer = router.post("/v1/rerank", body)
    directly = send(f"{router.engine_url('red')}/v1/rerank", body)
    assert answer.status == directly.status == 501
    assert answer.body == directly.body
    assert answer.headers["X-EngineRouter-Resolved"] == "red/red"


def test_a_prompt_that_is_too_long_is_the_engines_own_400(router: RealRouter) -> None:
    body = {"model": "red", "messages": [{"role": "user", "content": "Hello there " * 2000}]}
    answer = router.post("/v1/chat/completions", body)
    assert answer.status == 400
    assert answer.error["type"] == "exceed_context_size_error"
    assert router.phase("red") == "ready"


def test_the_models_of_all_engines_are_listed_without_loading_any(router: RealRouter, client: openai.OpenAI) -> None:
    before = router.log().count(" -> starting")
    assert {"red", "blue", "embed"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("embed").id == "embed"
    assert router.log().count(" -> starting") == before


def test_a_misspelt_model_is_told_what_there_is(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="red"):
        chat(client, "redd")


def test_clients_that_wait_for_a_swap_through_the_async_sdk_get_their_words(router: RealRouter) -> None:
    """Both dialect ends under one event loop, as an agent framework has it."""

    async def both() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{router.url}/v1", api_key="sk-none", max_retries=0, timeout=60
        ) as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model=model, messages=[{"role": "user", "content": "Hi"}], max_tokens=3
                    )
                    for model in ("red", "blue", "red", "blue")
                )
            )
        return [said(answer) for answer in answers]

    for model, text in zip(("red", "blue", "red", "blue"), asyncio.run(both()), strict=True):
        assert_said_by(model, text)
