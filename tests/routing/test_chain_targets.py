"""From a chain in the configuration to its targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from enginerouter.config.engines import EngineSettings, GenericProcess, Ollama, Remote
from enginerouter.config.model import Alias, Config, Model
from enginerouter.errors import UnknownModel
from enginerouter.routing.chains import flatten
from enginerouter.routing.directory import Directory
from enginerouter.routing.target import Chain


def everything(name: str) -> bool:
    return True


def only(*names: str) -> Callable[[str], bool]:
    return lambda name: name in names


def directory(**aliases: str | tuple[str, ...] | dict[str, Any]) -> Directory:
    """Engines: `a` and `b` of one model each, an Ollama daemon, a cloud. Names with `*` are given as `any_`."""
    engines: dict[str, EngineSettings] = {
        "a": GenericProcess(name="a", start_cmd=("x",), first_byte_timeout_s=9.0),
        "b": GenericProcess(name="b", start_cmd=("x",)),
        "ollama": Ollama(name="ollama"),
        "cloud": Remote(name="cloud", base_url="https://cloud.example/v1", served_models=("big",)),
    }
    models = (
        Model(id="qwen", engine="a", context_length=8192, upstream_id="qwen.gguf", same_as="q"),
        Model(id="gemma", engine="b", context_length=4096),
    )
    built = {}
    for key, said in aliases.items():
        name = key.replace("any_", "*")
        given: Any = said if isinstance(said, dict) else {"target": said} if isinstance(said, str) else {"chain": said}
        built[name] = Alias(name=name, **given)
    return Directory(Config(engines=engines, models=models, aliases=built))


def chain_of(names: Directory, name: str = "best") -> Chain:
    found = names.route(name, everything, lambda: None)
    assert isinstance(found, Chain)
    return found


def labels(chain: Chain) -> list[str]:
    return [t.label for t in chain.targets]


@pytest.mark.parametrize(
    ("aliases", "expected"),
    [
        ({"best": ("qwen", "gemma")}, ["a/qwen", "b/gemma"]),
        ({"best": ("a/qwen", "cloud/big", "big")}, ["a/qwen", "cloud/big"]),
        ({"best": ("short", "gemma"), "short": "qwen"}, ["a/qwen", "b/gemma"]),
        ({"best": ("inner", "cloud/any"), "inner": ("gemma", "qwen")}, ["b/gemma", "a/qwen", "cloud/any"]),
        ({"best": ("qwen", "inner"), "inner": ("gemma", "qwen", "big")}, ["a/qwen", "b/gemma", "cloud/big"]),
        ({"best": ("gpt-4", "qwen"), "gpt-any_": "gemma"}, ["b/gemma", "a/qwen"]),
        ({"best": ("gpt-4",), "gpt-any_": ("cloud/big", "qwen")}, ["cloud/big", "a/qwen"]),
        ({"best": ("ollama/llama3", "qwen:latest")}, ["ollama/llama3", "a/qwen"]),
        ({"best": ("b", "cloud", "a")}, ["b/gemma", "cloud/big", "a/qwen"]),
        ({"best": ("qwen",), "qwenish": ("gemma",)}, ["a/qwen"]),
    ],
)
def test_the_targets_of_a_chain_in_order_each_once(aliases: dict[str, Any], expected: list[str]) -> None:
    chain = chain_of(directory(**aliases))
    assert (labels(chain), chain.unknown) == (expected, ())
    assert {t.asked for t in chain.targets} == {"best"}


def test_a_target_of_a_chain_keeps_what_its_model_says() -> None:
    (first, second) = chain_of(directory(best={"chain": ("qwen", "gemma")})).targets
    assert (first.upstream_model, first.same_as, first.first_byte_timeout_s) == ("qwen.gguf", "q", 9.0)
    assert second.first_byte_timeout_s is None
    (first, second) = chain_of(directory(best={"chain": ("qwen", "gemma"), "first_byte_timeout_s": 2.0})).targets
    assert (first.first_byte_timeout_s, second.first_byte_timeout_s) == (2.0, 2.0)


def test_a_chain_under_a_glob_is_meant_by_every_name_that_matches() -> None:
    names = directory(claude_any_={"chain": ("qwen", "cloud/big")})
    chain = chain_of(names, "claude_opus")
    assert (chain.asked, labels(chain)) == ("claude_*", ["a/qwen", "cloud/big"])
    assert names.route("claude_opus", only("claude_opus"), lambda: None) == chain
    assert names.route("claude_opus", only("claude_*"), lambda: None) == chain
    with pytest.raises(UnknownModel):
        names.route("claude_opus", only("qwen"), lambda: None)


def test_a_chain_under_a_glob_that_it_matches_itself_ends() -> None:
    assert labels(chain_of(directory(claude_any_=("claude_x", "qwen")), "claude_y")) == ["a/qwen"]


def test_entries_that_engines_have_not_reported_are_unknown_until_they_do() -> None:
    names = directory(best=("llama3", "qwen"))
    assert chain_of(names).unknown == ("llama3",)
    names.learn("ollama", ["llama3:latest"])
    chain = chain_of(names)
    assert (labels(chain), chain.unknown) == (["ollama/llama3:latest", "a/qwen"], ())


def test_a_chain_is_given_as_it_was_when_it_was_asked_for() -> None:
    names = directory(best=("llama3", "qwen"))
    before = chain_of(names)
    names.learn("ollama", ["llama3:latest"])
    assert labels(before) == ["a/qwen"]


@pytest.mark.parametrize(
    ("aliases", "expected"),
    [
        ({"best": {"chain": ("cloud/big", "qwen"), "local_only": True}}, [True, True]),
        ({"best": ("safe", "qwen"), "safe": {"target": "big", "local_only": True}}, [True, False]),
        ({"best": ("inner", "qwen"), "inner": {"chain": ("big",), "local_only": True}}, [True, False]),
        ({"best": ("inner", "big"), "inner": {"chain": ("big",), "local_only": True}}, [False]),
    ],
)
def test_what_must_not_leave_the_machine_by_any_name_on_the_way(aliases: dict[str, Any], expected: list[bool]) -> None:
    assert [t.stays_local for t in chain_of(directory(**aliases)).targets] == expected


def test_the_catalogue_shows_a_chain_with_what_its_weakest_target_can() -> None:
    names = directory(best=("qwen", "gemma"), dark={"chain": ("qwen",), "hidden": True}, none=("llama3",))
    listed = {m.id: m for m in names.listed(everything)}
    assert listed["best"].context_length == 4096
    assert [t.label for t in listed["best"].targets] == ["a/qwen", "b/gemma"]
    assert "dark" not in listed
    assert "none" not in listed
    assert names.find("best", everything).context_length == 4096
    assert names.find("dark", everything).id == "dark"


def test_naming_a_chain_lets_its_slots_be_seen() -> None:
    names = directory(best=("qwen", "cloud/big"))
    seen = [t.slot for t in chain_of(names).targets]
    assert all(names.may_use(slot, only("best")) for slot in seen)
    assert not any(names.may_use(slot, only("other")) for slot in seen)


def test_chains_that_double_at_every_step_take_no_time() -> None:
    aliases = {f"c{n}": Alias(name=f"c{n}", chain=(f"c{n + 1}", f"c{n + 1}")) for n in range(60)}
    assert list(flatten(aliases["c0"], aliases.get)) == [("c60", False)] * 2
