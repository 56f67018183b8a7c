"""The pages on setting up: every command in them is one, every piece of configuration loads, every option is told."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from enginerouter.cli.main import Arguments, parser
from enginerouter.config.source import read_source

FOLDER = Path(__file__).resolve().parents[2]
PAGES = [
    *(FOLDER / "docs" / "how-to" / f"{name}.md" for name in ("set-up", "from-llama-swap", "from-a-gateway")),
    FOLDER / "presets" / "README.md",
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_one(page: Path) -> None:
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    ours = [shlex.split(line, comments=True) for line in lines if line.startswith("enginerouter")]
    assert ours
    for _, *words in ours:
        parser().parse_args(words, Arguments())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_configuration_of_a_page_is_yaml(page: Path) -> None:
    for block in blocks(page, "yaml"):
        assert read_source(block, page.name, {}).report.errors == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
