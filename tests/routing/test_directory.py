"""Which slot a name means, by the rules that `enginerouter.routing.directory` states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from enginerouter.config.engines import GenericProcess
from enginerouter.config.model import Alias, Config, Model
from enginerouter.errors import BadRequest, UnknownModel
from enginerouter.routing.directory import Directory, Target
from enginerouter.slots import SlotId


def everything(name: str) -> bool:
    return True


def directory(
    engines: Mapping[str, Mapping[str, Any]],
    models: tuple[Model, ...] = (),
    aliases: Mapping[str, str | tuple[str, ...]] | None = None,
    **settings: Any,
) -> Directory:
    built = {name: GenericProcess(name=name, start_cmd=("x",), **more) for name, more in engines.items()}
    named = {
        name: Alias(name=name, target=said) if isinstance(said, str) else Alias(name=name, chain=said)
        for name, said in (aliases or {}).items()
    }
    return Directory(Config(engines=built, models=models, aliases=named, **settings))


@pytest.fixture
def names() -> Directory:
    return directory(
        {"llama": {}, "vllm": {"served_models": ("org/served", "second")}, "solo": {}, "off": {"enabled": False}},
        (
            Model(id="qwen:7b", engine="llama", upstream_id="qwen.gguf"),
            Model(id="tagless", engine="llama"),
            Model(id="tagged:latest", engine="llama"),
            Model(id="claude-exact", engine="llama"),
            Model(id="dark", engine="off"),
        ),
        {
            "fast": "qwen:7b",
            "direct": "llama/tagless",
            "claude-*": "second",
            "gpt-[34]*": "tagless",
            "best": ("qwen:7b", "second"),
            "gone": "dark",
        },
    )


def resolve(names: Directory, name: str | None, resident: SlotId | None = None) -> Target:
    return names.resolve(name, everything, lambda: resident)


@pytest.mark.parametrize(
    ("name", "label", "asked"),
    [
        ("qwen:7b", "llama/qwen:7b", "qwen:7b"),
        ("org/served", "vllm/org/served", "org/served"),
        ("solo", "solo/solo", "solo"),
        ("fast", "llama/qwen:7b", "fast"),
        ("direct", "llama/tagless", "direct"),
        ("claude-exact", "llama/claude-exact", "claude-exact"),
        ("claude-sonnet", "vllm/second", "claude-*"),
        ("gpt-4o", "llama/tagless", "gpt-[34]*"),
        ("llama/qwen:7b", "llama/qwen:7b", "qwen:7b"),
        ("vllm/org/served", "vllm/org/served", "org/served"),
        ("tagless:latest", "llama/tagless", "tagless"),
        ("tagged", "llama/tagged:latest", "tagged:latest"),
        ("fast:latest", "llama/qwen:7b", "fast"),
    ],
)
def test_what_a_name_means(names: Directory, name: str, label: str, asked: str) -> None:
    target = resolve(names, name)
    assert (target.label, target.asked) == (label, asked)


def test_the_engine_gets_the_name_it_knows(names: Directory) -> None:
    assert resolve(names, "fast").upstream_model == "qwen.gguf"
    assert resolve(names, "tagged").upstream_model == "tagged:latest"


@pytest.mark.parametrize(
    "name", ["llama", "vllm", "qwen", "qwen:8b", "QWEN:7B", "llama/second", "vllm/qwen:7b", "dark", "off/dark", "gone",
             "off", "", "gpt-5", "/", "llama/", "claude"]
)  # fmt: skip
def test_what_no_name_means(names: Directory, name: str) -> None:
    with pytest.raises(UnknownModel):
        resolve(names, name)


def test_an_unknown_name_is_answered_with_the_closest_that_the_key_may_see(names: Directory) -> None:
    with pytest.raises(UnknownModel, match="did you mean 'tagless'"):
        resolve(names, "tagles")
    with pytest.raises(UnknownModel) as caught:
        names.resolve("tagles", lambda name: name != "tagless", lambda: None)
    assert "'tagless'" not in caught.value.message


def test_a_name_the_key_may_not_use_looks_unknown(names: Directory) -> None:
    def only_fast(name: str) -> bool:
        return name == "fast"

    assert names.resolve("fast", only_fast, lambda: None).label == "llama/qwen:7b", "an alias grants what it names"
    for name in ("qwen:7b", "llama/qwen:7b", "best", "claude-x"):
        with pytest.raises(UnknownModel):
            names.resolve(name, only_fast, lambda: None)


def test_no_name_means_the_default_else_the_resident_else_400(names: Directory) -> None:
    assert resolve(names, None, SlotId("vllm")).label == "vllm/org/served"
    with pytest.raises(BadRequest):
        resolve(names, None)
    with_default = directory({"a": {}, "b": {}}, default_model="b")
    assert resolve(with_default, None, SlotId("a")).label == "b/b"


def test_the_default_may_be_an_alias(names: Directory) -> None:
    assert resolve(directory({"a": {}}, aliases={"x": "a"}, default_model="x"), None).label == "a/a"


def test_the_list_has_every_name_once_and_no_patterns(names: Directory) -> None:
    listed = [m.id for m in names.listed(everything)]
    assert listed == [
        "qwen:7b", "tagless", "tagged:latest", "claude-exact", "org/served", "second", "solo", "fast", "direct", "best",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "alias_of"),
    [
        ("qwen:7b", None),
        ("fast", "qwen:7b"),
        ("tagless:latest", "tagless"),
        ("tagged", "tagged:latest"),
        ("llama/qwen:7b", "qwen:7b"),
        ("solo/solo", "solo"),
        ("claude-sonnet", "second"),
    ],
)
def test_one_entry_is_found_under_every_name_that_a_request_may_use(
    names: Directory, name: str, alias_of: str | None
) -> None:
    found = names.find(name, everything)
    assert (found.id, found.alias_of) == (name, alias_of)
    with pytest.raises(UnknownModel):
        names.find(name, lambda name: False)


def test_a_hidden_alias_is_found_though_it_is_not_listed() -> None:
    built = {"a": GenericProcess(name="a", start_cmd=("x",))}
    names = Directory(Config(engines=built, aliases={"x": Alias(name="x", target="a", hidden=True)}))
    assert [m.id for m in names.listed(everything)] == ["a"]
    assert names.find("x", everything).alias_of == "a"


def test_a_key_may_use_a_slot_that_one_of_its_names_leads_to(names: Directory) -> None:
    for name, slot in (("fast", "llama"), ("second", "vllm"), ("claude-*", "vllm"), ("solo", "solo")):
        usable = {s for s in ("llama", "vllm", "solo") if names.may_use(SlotId(s), {name}.__contains__)}
        assert usable == {slot}


def test_a_request_without_a_model_is_told_what_to_do(names: Directory) -> None:
    with pytest.raises(BadRequest) as caught:
        resolve(names, None)
    assert "names no model" in caught.value.message
    for way_out in ("'model'", "GET /v1/models", "default_model"):
        assert way_out in caught.value.message
