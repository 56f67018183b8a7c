"""What is written is read back as the same, whatever names and values people have."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from enginerouter.config.source import read_source
from enginerouter.setup.emit import Document, Noted, Raw

TRICKY = [
    *("on", "off", "yes", "no", "null", "~", "1.5", "1_000", "0x1F", "0o7", "1e3", "12:30", "2026-11-21", "=", "<<"),
    *("-", "- a", "a: b", "a #b", "#a", "'", '"', "a'b\"c", "{x}", "[x]", "{port}", "$HOME", "${HOME}", "$$", "a, b"),
    *(
        "!x",
        "&x",
        "*x",
        "%x",
        "@x",
        "`x",
        "|",
        ">",
        "?",
        "qwen3:30b",
        "org/model",
        "a" * 300,
        "ä ö 模型",
        "a\tb",
        "a\nb",
    ),
    *("a\\nb", " a", "a ", "...", "---", "", "\x85x", "\u2028", "\U0001f600", "no \udcff text"),
]


def read(text: str, **environ: str) -> Any:
    source = read_source(text, "written", environ)
    assert source.report.errors == [], (text, [str(e) for e in source.report.errors])
    return source.data


@pytest.mark.parametrize("word", TRICKY)
def test_a_word_is_read_back_as_it_was(word: str) -> None:
    key = word.replace("\n", "") or "k"
    document = Document(
        head=[f"about {word}"],
        settings={"log_file": word},
        engines={key: Noted({"start_cmd": [word, "x"] * 40, "env": {"A": word}, "cwd": word}, (f"of {word}",))},
        models=[Noted({"id": word, "set_params": {"deep": {"deeper": [word, 1, None, True, 1.5]}}}, (word,))],
        aliases={key: Noted(word), "long": Noted({"chain": [word] * 30})},
    )
    data = read(document.text().encode().decode())
    assert data["log_file"] == word
    (engine,) = data["engines"].values()
    assert list(data["engines"]) == [key]
    assert engine == {"start_cmd": [word, "x"] * 40, "env": {"A": word}, "cwd": word}
    assert data["models"] == [{"id": word, "set_params": {"deep": {"deeper": [word, 1, None, True, 1.5]}}}]
    assert data["aliases"] == {key: word, "long": {"chain": [word] * 30}} | ({"long": word} if key == "long" else {})


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(2**40), 2**40), FLOATS, st.text(max_size=30))
NAMES = st.text(min_size=1, max_size=20)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(NAMES, v, max_size=4), max_leaves=12)


@settings(max_examples=60, deadline=None)
@example(engines={"e": {"\x1f" * 40: {}, "\x1e" * 40: []}}, note="nothing, behind a key that fills the line")
@given(
    engines=st.dictionaries(NAMES, st.dictionaries(NAMES, VALUES, min_size=1, max_size=4), max_size=3),
    note=st.text(max_size=60),
)
def test_any_data_is_read_back_as_it_was(engines: dict[str, Any], note: str) -> None:
    document = Document(head=[note], engines={name: Noted(value, (note,)) for name, value in engines.items()})
    assert read(document.text()).get("engines", {}) == engines


def test_a_variable_that_is_meant_stays_one_and_is_text() -> None:
    document = Document(settings={"api_keys": [Raw("${KEY}")], "log_file": Raw("$${X}/${KEY}")}, engines={})
    assert read(document.text(), KEY="0123") == {"api_keys": ["0123"], "log_file": "${X}/0123"}


def test_comments_cannot_break_out() -> None:
    text = Document(head=["a\nport: 1\r\x0bport: 2\x85port: 3"], settings={"port": 8077}).text()
    assert read(text) == {"port": 8077}
