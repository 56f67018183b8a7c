"""The pages as a reader meets them: their fenced blocks, and the commands in those."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "presets/README.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "deploy").rglob("*.md")),
]
# The end of one command and the begin of the next.
CONNECTORS = ("&&", "||", "|", ";", "&")
ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")


def name_of(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


@dataclass(frozen=True)
class Block:
    """`name`: page and first line without its comment, by which a block is known in tables and reports."""

    page: Path
    text: str

    @property
    def name(self) -> str:
        return f"{name_of(self.page)}: {re.sub(r'  +#.*', '', self.text.splitlines()[0])}"

    def commands(self) -> Iterator[list[str]]:
        """The words of each simple command, without assignments before it and redirections after it."""
        for line in self.text.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if word in CONNECTORS:
                    yield from _without_the_shell(words)
                    words = []
                else:
                    words.append(word)


def _without_the_shell(words: list[str]) -> Iterator[list[str]]:
    while words and ASSIGNMENT.match(words[0]):
        words = words[1:]
    for sign in (">", ">>", "<"):
        words = words[: words.index(sign)] if sign in words else words
    if words:
        yield words


def blocks(page: Path, language: str) -> list[Block]:
    """The fenced blocks of one language, also those inside of lists, without their indent."""
    pattern = rf"^([ ]*)```{language}\n(.*?)^\1```$"
    found = re.findall(pattern, page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [Block(page, re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)) for indent, text in found]


def all_blocks(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page, language)]
