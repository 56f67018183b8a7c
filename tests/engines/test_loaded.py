"""What the lists and errors of servers mean, as the real ones write them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginerouter.config.engines import ApiSwap
from enginerouter.engines.http_control import ControlFailed, Said, error_told, filled, parsed, sentence_of
from enginerouter.engines.loaded import known_models, loaded_models, ollama_running


def said(document: Any, status: int = 200, content_type: str = "application/json") -> Said:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return Said("http://x/list", status, content_type, body, parsed(body))


def loaded(document: Any, status: int = 200, **settings: Any) -> list[tuple[str, tuple[str, ...]]]:
    engine = ApiSwap(name="e", base_url="http://x", loaded_path="/list", **settings)
    return [(one.name, one.ids) for one in loaded_models(said(document, status), engine)]


LM_STUDIO = {
    "models": [
        {"type": "llm", "key": "qwen", "loaded_instances": [{"id": "qwen"}, {"id": "qwen:2"}]},
        {"type": "llm", "key": "gemma", "loaded_instances": []},
    ]
}


@pytest.mark.parametrize(
    ("document", "settings", "expected"),
    [
        (LM_STUDIO, {"loaded_name_key": "key"}, [("qwen", ("qwen", "qwen:2"))]),
        # The keys that older configs have for LM Studio.
        (LM_STUDIO, {"loaded_models_key": "data", "loaded_name_key": "id"}, [("qwen", ("qwen", "qwen:2"))]),
        (
            {"data": [{"id": "a", "state": "loaded"}, {"id": "b", "state": "not-loaded"}]},
            {"loaded_models_key": "data", "loaded_name_key": "id", "loaded_filter": "state==loaded"},
            [("a", ("a",))],
        ),
        ({"id": "m", "owned_by": "tabbyAPI"}, {"loaded_models_key": "", "loaded_name_key": "id"}, [("m", ("m",))]),
        ({"id": "m"}, {"loaded_name_key": "id"}, [("m", ("m",))]),  # the key is absent: one entry
        ({"models": []}, {}, []),
        ({"models": None}, {}, []),
        ({"models": [{"name": "a", "handle": 7}]}, {"loaded_id_key": "handle"}, [("a", ("7",))]),
        (["a", "b"], {}, [("a", ("a",)), ("b", ("b",))]),
        (
            {"backends": ["x"], "loaded_models": [{"id": "a", "backend": "llama"}]},  # LocalAI
            {"loaded_models_key": "loaded_models", "loaded_name_key": "id"},
            [("a", ("a",))],
        ),
        (
            {"status": "ok", "all_models_loaded": [{"model_name": "a"}]},  # Lemonade
            {"loaded_models_key": "all_models_loaded", "loaded_name_key": "model_name"},
            [("a", ("a",))],
        ),
        (
            {"data": [{"id": "a", "status": {"value": "loaded"}}, {"id": "b", "status": {"value": "unloaded"}}]},
            {"loaded_models_key": "data", "loaded_name_key": "id", "loaded_filter": "status.value==loaded"},
            [("a", ("a",))],
        ),
        ({"model_name": "None", "lora_names": []}, {"loaded_models_key": "", "loaded_name_key": "model_name"}, []),
    ],
)
def test_what_is_loaded(document: Any, settings: dict[str, Any], expected: Any) -> None:
    assert loaded(document, **settings) == expected


def test_the_503_of_a_server_that_has_no_empty_list_means_nothing_and_any_other_does_not() -> None:
    assert loaded({"detail": "No models are currently loaded."}, 503, loaded_models_key="") == []
    with pytest.raises(ControlFailed, match="503: busy"):
        loaded({"detail": "busy"}, 503, loaded_models_key="")


@pytest.mark.parametrize(
    "document",
    [b"", b"OK", b"null", b"7", {}, {"models": "x"}, {"models": [7]}, {"models": [{"size": 1}]}, {"error": "no"},
     {"models": [{"name": "a", "loaded_instances": [{"x": 1}]}]}, {"object": "error", "message": "m"},
     b'{"models": [', b"[" * 100000],
)  # fmt: skip
def test_what_is_not_surely_a_list_is_never_nothing_loaded(document: Any) -> None:
    with pytest.raises(ControlFailed):
        loaded(document)


@pytest.mark.parametrize("document", [[], {"models": 1}, {"models": [{}]}, {}, b"x", {"error": "x"}])
def test_what_is_not_surely_a_list_of_running_models_is_an_error(document: Any) -> None:
    with pytest.raises(ControlFailed):
        ollama_running(said(document))


@pytest.mark.parametrize(
    "load_path",
    [
        "/api/v1/models/load",
        "/v1/model/load",
        "/below/v1/model/load?x=1",
        "/backend/load",
        "/api/v1/load",
        "/v1/internal/model/load",
        "/models/load",
    ],
)
def test_a_bare_list_is_none_of_a_server_that_is_known_to_send_objects(load_path: str) -> None:
    for document in ([], ["a"], "ok", b"ok", {}):
        with pytest.raises(ControlFailed) as refused:
            loaded(document, load_path=load_path, loaded_models_key="", loaded_name_key="id")
        assert refused.value.is_mistaken
    assert loaded([], load_path="/load") == []


def test_an_object_that_says_nothing_is_no_list_whatever_is_filtered() -> None:
    with pytest.raises(
        ControlFailed, match=r"asked what is loaded, http://x/list answered '\{\}', without 'data' or 'id'"
    ):
        loaded({}, loaded_models_key="data", loaded_name_key="id", loaded_filter="state==loaded")


def test_every_form_of_a_catalogue_is_read_and_names_that_cannot_be_names_are_left_out() -> None:
    entries = [{"id": "a"}, {"name": "b"}, "c", {"key": "d"}, {"id": " e"}, {"id": "f\n"}, {"size": 1}, {"id": "a"}]
    for document in (entries, {"data": entries}, {"models": entries}):
        assert known_models(said(document)).ids == ("a", "b", "c", "d")
    with pytest.raises(ControlFailed):
        known_models(said({"detail": "x"}, 401))


def test_an_event_stream_with_an_error_in_it_is_a_problem_whatever_ends_its_lines() -> None:
    for end in (b"\r\n\r\n", b"\n\n"):
        stream = end.join(
            [b": ping", b'data: {"status": "processing"}', b'data: {"error": {"message": "no room"}}', b""]
        )
        assert "no room" in str(said(stream, content_type="text/event-stream").problem())
        fine = end.join([b'data: {"status": "finished"}', b"data: [DONE]", b""])
        assert said(fine, content_type="text/event-stream").problem() is None


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"error": {"message": "m"}}, "m"),
        ({"error": "text"}, "text"),
        ({"object": "error", "message": "m"}, "m"),
        ({"type": "error", "error": {"message": "m"}}, "m"),
        ([{"error": {"message": "m"}}], "m"),
        ({"status": "error", "message": "m"}, "m"),
        ({"status": "ok", "message": "Loaded"}, None),
        ({"detail": "d"}, None),
        ({"error": None}, None),
        ({"error": ""}, None),
        (None, None),
        ("OK", None),
        ([], None),
        ([{"id": "a"}], None),
    ],
)
def test_which_documents_are_errors(document: Any, words: str | None) -> None:
    assert error_told(document) == words


def test_the_sentence_of_an_error_is_one_short_printable_line() -> None:
    assert sentence_of({"detail": [{"loc": ["body", "model"], "msg": "missing"}]}, b"") == "body.model: missing"
    assert sentence_of(None, b"<html>x</html>") == "a page of HTML"
    assert sentence_of(None, b"") == "nothing more"
    nested: Any = "deep"
    for _ in range(3000):
        nested = {"error": [nested]}
    assert sentence_of(nested, b"x") == "x"
    assert "\n" not in sentence_of({"error": "a\nb\x1b[0m"}, b"")
    assert len(sentence_of({"error": "x" * 10_000}, b"")) < 400


def test_a_model_is_filled_in_at_any_depth_and_nowhere_else() -> None:
    template = {"a": "{model}", "b": [{"c": "x-{model}"}, 1, None, True], "{model}": "{models}"}
    assert filled(template, "m") == {"a": "m", "b": [{"c": "x-m"}, 1, None, True], "{model}": "{models}"}
