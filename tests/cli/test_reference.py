"""The references equal what they are made from, and every command explains itself."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from enginerouter.cli import main as enginerouter
from enginerouter.cli import routerctl
from enginerouter.cli.reference import TEXTS, subcommands

REFERENCE = Path(__file__).resolve().parents[2] / "docs/reference"


@pytest.mark.parametrize("which", TEXTS)
def test_a_reference_is_up_to_date(which: str) -> None:
    again = f"run: python -m enginerouter.cli.reference {which} > docs/reference/{which}.md"
    assert (REFERENCE / f"{which}.md").read_text() == TEXTS[which](), again


def test_every_route_and_error_says_what_it_is() -> None:
    assert [line for line in TEXTS["http"]().splitlines() if "|  |" in line] == []


@pytest.mark.parametrize("parser", [enginerouter.parser(), routerctl.parser()], ids=lambda p: p.prog)
def test_every_command_and_option_says_what_it_does(parser: argparse.ArgumentParser) -> None:
    for name, command, text in [("", parser, parser.description), *subcommands(parser)]:
        assert text, name
        for action in command._actions:
            if action.option_strings:
                assert action.help, (name, action.option_strings)
