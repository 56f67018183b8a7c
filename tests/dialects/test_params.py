"""What a model's settings change in a request, in which order, and what they leave alone."""

from __future__ import annotations

import asyncio
import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enginerouter.dialects.params import ParamRules, changed, told
from enginerouter.dialects.thinking import Form, form_of
from enginerouter.web.ask import Ask
from enginerouter.web.json_body import parse_json_object

CHAT, MESSAGES, OLLAMA = "/v1/chat/completions", "/v1/messages", "/api/chat"
KWARGS = {"chat_template_kwargs": {"enable_thinking": False}}


def after(body: dict[str, Any], path: str = CHAT, **rules: Any) -> dict[str, Any]:
    found, _ = changed(path, {"model": "m", **body}, ParamRules(**rules), "m")
    assert found.pop("model") == "m"
    return found


@pytest.mark.parametrize(
    ("rules", "body", "expected"),
    [
        # strip
        ({"strip": ("a",)}, {"a": 1, "b": 2}, {"b": 2}),
        ({"strip": ("a",)}, {"b": 2}, {"b": 2}),
        ({"strip": ("o.a",)}, {"o": {"a": 1, "b": 2}}, {"o": {"b": 2}}),
        ({"strip": ("o.a",)}, {"o": {"a": 1}}, {"o": {}}),
        ({"strip": ("o.a",)}, {"o": "text"}, {"o": "text"}),
        ({"strip": ("o.a.b",)}, {"o": {"a": [{"b": 1}]}}, {"o": {"a": [{"b": 1}]}}),
        # default: absent keys only
        ({"default": {"a": 1}}, {}, {"a": 1}),
        ({"default": {"a": 1}}, {"a": 0}, {"a": 0}),
        ({"default": {"a": 1}}, {"a": None}, {"a": None}),
        ({"default": {"o.a": 1}}, {}, {"o": {"a": 1}}),
        ({"default": {"o.a": 1}}, {"o": {"b": 2}}, {"o": {"b": 2, "a": 1}}),
        ({"default": {"o.a": 1}}, {"o": None}, {"o": {"a": 1}}),
        ({"default": {"o.a": 1}}, {"o": "the engine's to refuse"}, {"o": "the engine's to refuse"}),
        ({"default": {"o.a.b": 1}}, {"o": {"a": [1]}}, {"o": {"a": [1]}}),
        # set: whatever is there
        ({"set": {"a": 1}}, {"a": 0}, {"a": 1}),
        ({"set": {"o.a": None}}, {"o": "text"}, {"o": {"a": None}}),
        ({"set": {"o.a": [1], "o.b": {"c": 1}}}, {"o": {"x": 0}}, {"o": {"x": 0, "a": [1], "b": {"c": 1}}}),
        # the order: strip, default, set
        ({"strip": ("a",), "default": {"a": 1}}, {"a": 9}, {"a": 1}),
        ({"strip": ("a",), "set": {"a": 2}}, {"a": 9}, {"a": 2}),
        ({"default": {"a": 1}, "set": {"a": 2}}, {}, {"a": 2}),
    ],
)
def test_strip_then_default_then_set(rules: dict[str, Any], body: dict[str, Any], expected: dict[str, Any]) -> None:
    assert after(body, **rules) == expected


@pytest.mark.parametrize(
    ("path", "form", "limit", "expected"),
    [
        (CHAT, "template", {"max_tokens": 99}, KWARGS),
        (CHAT, "template", {"max_completion_tokens": 99}, KWARGS),
        (CHAT, "effort", {"max_tokens": 99}, {"reasoning_effort": "none"}),
        (CHAT, "ollama", {"max_tokens": 99}, {"reasoning_effort": "none"}),
        (MESSAGES, "template", {"max_tokens": 99}, {"thinking": {"type": "disabled"}, **KWARGS}),
        (MESSAGES, "effort", {"max_tokens": 99}, {"thinking": {"type": "disabled"}}),
        (MESSAGES, "ollama", {"max_tokens": 99}, {"thinking": {"type": "disabled"}}),
        (OLLAMA, "ollama", {"options": {"num_predict": 99}}, {"think": False}),
        (OLLAMA, "template", {"options": {"num_predict": 99}}, {"think": False}),
    ],
)
def test_the_guard_says_it_in_the_words_of_the_engine(
    path: str, form: Form, limit: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert after(limit, path, no_thinking_below=100, form=form) == {**limit, **expected}


@pytest.mark.parametrize(("engine", "form"), [("generic_process", "template"), ("systemd_unit", "template"),
                                              ("api_swap", "template"), ("remote", "effort"),
                                              ("ollama", "ollama")])  # fmt: skip
def test_which_words_an_engine_knows(engine: str, form: Form) -> None:
    assert form_of(engine) == form


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"max_tokens": 100},
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"max_tokens": None},
        {"max_tokens": True},
        {"max_tokens": "5"},
        {"max_completion_tokens": 500, "max_tokens": 5},  # the newer name wins
        {"options": {"num_predict": 5}},  # Ollama's, elsewhere
    ],
)
def test_no_limit_below_the_threshold_no_guard(body: dict[str, Any]) -> None:
    assert after(body, no_thinking_below=100) == body


@pytest.mark.parametrize("limits", [{"max_completion_tokens": 0, "max_tokens": 5}, {"max_completion_tokens": None,
                                    "max_tokens": 5}, {"max_tokens": 1.0}, {"max_tokens": 99}])  # fmt: skip
def test_limits_that_do_not_count_leave_the_word_to_the_next(limits: dict[str, Any]) -> None:
    assert after(limits, no_thinking_below=100) == {**limits, **KWARGS}


CHOICES: list[dict[str, Any]] = [
    {"enable_thinking": True},
    {"enable_thinking": False},
    {"think": "low"},
    {"think": False},
    {"thinking": {"type": "enabled", "budget_tokens": 1}},
    {"reasoning_effort": "high"},
    {"reasoning": {"effort": "low"}},
    {"output_config": {"effort": "low"}},
    {"chat_template_kwargs": {"enable_thinking": True}},
    {"chat_template_kwargs": {"thinking": True}},
    {"chat_template_kwargs": "the engine's to refuse"},
]


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize(("path", "limit"), [(CHAT, {"max_tokens": 5}), (MESSAGES, {"max_tokens": 5}),
                                             (OLLAMA, {"options": {"num_predict": 5}})])  # fmt: skip
def test_who_has_chosen_is_left_alone(path: str, limit: dict[str, Any], choice: dict[str, Any]) -> None:
    body = {**limit, **choice}
    assert after(body, path, no_thinking_below=100) == body


@pytest.mark.parametrize("nothing", [{"reasoning_effort": None}, {"chat_template_kwargs": None},
                                     {"chat_template_kwargs": {"enable_thinking": None}},
                                     {"chat_template_kwargs": {"x": 1}}])  # fmt: skip
def test_null_chooses_nothing_and_other_variables_stay(nothing: dict[str, Any]) -> None:
    body = after({"max_tokens": 5, **nothing}, no_thinking_below=100)
    assert body["chat_template_kwargs"]["enable_thinking"] is False
    assert {**(nothing.get("chat_template_kwargs") or {}), "enable_thinking": False} == body["chat_template_kwargs"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", "/v1/responses", "/api/generate", "/infill"])
def test_the_guard_is_for_chats_alone(path: str) -> None:
    assert after({"max_tokens": 5}, path, no_thinking_below=100) == {"max_tokens": 5}


def test_the_guard_sees_what_the_settings_before_it_wrote() -> None:
    assert after({"max_tokens": 5}, strip=("max_tokens",), no_thinking_below=100) == {}
    assert after({}, default={"max_tokens": 5}, no_thinking_below=100) == {"max_tokens": 5, **KWARGS}
    chosen = {"max_tokens": 5, "reasoning_effort": "low"}
    assert after({"max_tokens": 5}, default={"reasoning_effort": "low"}, no_thinking_below=100) == chosen
    stripped = after({"max_tokens": 5, "think": True}, strip=("think",), no_thinking_below=100)
    assert stripped == {"max_tokens": 5, **KWARGS}


def test_the_changes_are_told_in_order_and_only_those_that_change_something() -> None:
    rules = ParamRules(("seed", "n"), {"top_k": 5, "top_p": 1}, {"temperature": 0, "x": 1}, 100)
    body = {"model": "alias", "seed": 1, "top_p": 0.5, "x": 1, "max_tokens": 9}
    after, changes = changed(CHAT, body, rules, "real")
    assert told(changes) == [
        {"step": "strip", "path": "seed"},
        {"step": "default", "path": "top_k", "value": 5},
        {"step": "set", "path": "temperature", "value": 0},
        {"step": "guard", "path": "chat_template_kwargs.enable_thinking", "value": False},
        {"step": "model", "path": "model", "value": "real"},
    ]
    assert after == {"model": "real", "top_p": 0.5, "x": 1, "max_tokens": 9, "top_k": 5, "temperature": 0, **KWARGS}


@pytest.mark.parametrize(("there", "value"), [(1, True), (1, 1.0), (0, False), ([1], [True]), ({"a": 1}, {"a": 1.0})])
def test_what_is_only_equal_to_python_is_a_change(there: Any, value: Any) -> None:
    assert json.dumps(after({"a": there}, set={"a": value})) == json.dumps({"a": value})


names = st.sampled_from(["a", "b", "c", "max_tokens", "think", "options", "chat_template_kwargs"])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 200) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(names, values, max_size=4)
paths = st.lists(names, min_size=1, max_size=3).map(".".join)
rules = st.builds(
    ParamRules,
    strip=st.lists(paths, max_size=3).map(tuple),
    default=st.dictionaries(paths, values, max_size=3),
    set=st.dictionaries(paths, values, max_size=3),
    no_thinking_below=st.none() | st.just(100),
    form=st.sampled_from(["template", "effort", "ollama"]),
)


# A busy machine is slow to make data, too.
PATIENT = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])


@PATIENT
@given(objects, rules, st.sampled_from([CHAT, MESSAGES, OLLAMA, "/v1/embeddings"]))
def test_the_original_is_never_touched_and_what_is_set_is_there(
    body: dict[str, Any], rules: ParamRules, path: str
) -> None:
    before = copy.deepcopy(body)
    found, changes = changed(path, body, rules, "m")
    assert body == before
    assert found["model"] == "m"
    assert (found is body) == (not changes)
    if len(rules.set) == 1 and rules.no_thinking_below is None:
        [(dotted, value)] = rules.set.items()
        at: Any = found
        for step in dotted.split("."):
            at = at[step]
        assert at == value


@PATIENT
@given(objects, st.booleans())
def test_bytes_that_need_no_change_are_the_very_bytes(body: dict[str, Any], is_renamed: bool) -> None:
    """Rules that find nothing to do leave odd spelling and white space as they came, but for the name."""
    raw = json.dumps({"model": "alias", **body, "odd": 1e5}, indent=1, ensure_ascii=True).encode()
    rules = ParamRules(strip=("absent", "a.absent.b"), default={"odd": 1}, set={"odd": 1e5})
    ask = Ask("/v1/embeddings", raw, parse_json_object(raw))
    model = "real" if is_renamed else "alias"
    assert asyncio.run(ask.body_for(model, rules)) == raw.replace(b'"alias"', f'"{model}"'.encode(), 1)
    assert ask.body == raw


def test_every_target_gets_its_body_from_what_came() -> None:
    raw = b'{"model":"chain",  "n" : 1}'
    ask = Ask(CHAT, raw, parse_json_object(raw))

    async def bodies() -> list[Any]:
        first = await ask.body_for("a", ParamRules(set={"x": 1}))
        return [first, await ask.body_for("b"), await ask.body_for("chain")]

    first, second, third = asyncio.run(bodies())
    assert json.loads(first) == {"model": "a", "n": 1, "x": 1}
    assert (second, third) == (b'{"model":"b",  "n" : 1}', raw)
