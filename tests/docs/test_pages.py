"""What pages say is so: commands and options exist, routes answer, configurations load, links and metrics are there."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from doc_pages import PAGES, REPOSITORY, Block, all_blocks, blocks, name_of

from enginerouter.cli import reference, routerctl
from enginerouter.cli.main import Arguments, parser
from enginerouter.config.load import load_text
from enginerouter.errors import RouterError
from enginerouter.web.routes import Routes

BASH = all_blocks("bash")
INSTALL_OPTIONS = set(re.findall(r"--[a-z-]+", (REPOSITORY / "install.sh").read_text().split("TEXT")[1]))
# Programs that are not ours; their options are theirs.
FOREIGN = {
    *("docker", "echo", "export", "ggml-rpc-server", "git", "haproxy", "journalctl", "loginctl", "mkdir", "pip"),
    *("python3", "ray", "systemctl"),
}
OWN_SCRIPTS = {"tests/run", ".ci/run", "ruff", "mypy"}
ENVIRONMENT = {name: name.lower() for name in ("ENGINEROUTER_KEY", "CHAT_UI_KEY", "OPENROUTER_API_KEY")}


@pytest.fixture(scope="module")
def routes() -> Routes:
    return reference.routes()


def check_command(words: list[str], routes: Routes) -> None:
    program = words[0].removeprefix(".venv/bin/").removeprefix(".venv-tests/bin/")
    if program == "enginerouter":
        parser().parse_args(words[1:] if "--help" not in words else [], Arguments())
    elif program == "routerctl":
        routerctl.parser().parse_args(words[1:], routerctl.Arguments())
    elif program == "./install.sh":
        assert {word for word in words[1:] if word.startswith("--")} <= INSTALL_OPTIONS | {"--once"}
    elif program == "curl":
        check_curl(words, routes)
    elif program in OWN_SCRIPTS:
        assert "/" not in program or (REPOSITORY / program).exists()
    else:
        assert program in FOREIGN, f"what is {program!r}?"


def check_curl(words: list[str], routes: Routes) -> None:
    """Raises what the router would answer: a wrong path, a wrong method, a body that is no JSON."""
    url = urlsplit(next(word for word in words if word.startswith("http")))
    if url.port != 8077:
        return
    has_body = "-d" in words
    method = words[words.index("-X") + 1] if "-X" in words else "POST" if has_body else "GET"
    routes.match(method, url.path or "/")
    if has_body:
        json.loads(words[words.index("-d") + 1])


@pytest.mark.parametrize("block", BASH, ids=lambda block: block.name)
def test_every_command_and_option_on_a_page_is_one(block: Block, routes: Routes) -> None:
    for words in block.commands():
        check_command(words, routes)


@pytest.mark.parametrize(
    "wrong",
    [
        "enginerouter init --preste llamacpp",
        "routerctl statsu",
        "./install.sh --unistall",
        "curl -X POST http://127.0.0.1:8077/status",
        "curl http://127.0.0.1:8077/v1/modles",
        "echo && llama-swap --config x",
        "curl http://127.0.0.1:8077/admin/hold -d '{owner: x}'",
    ],
)
def test_wrong_words_on_a_page_are_found(wrong: str, routes: Routes) -> None:
    """The check itself."""
    commands = list(Block(REPOSITORY / "README.md", wrong).commands())
    with pytest.raises((AssertionError, RouterError, ValueError, SystemExit)):
        check_command(commands[-1], routes)


@pytest.mark.parametrize("block", all_blocks("yaml"), ids=lambda block: block.name)
def test_every_configuration_on_a_page_loads(block: Block, tmp_path: Path) -> None:
    """A piece without engines is one of a file that has some; what is another program's is YAML, at least."""
    (tmp_path / "agents.key").write_text("secret\n")
    (tmp_path / "profiles.yaml").write_text("profiles: {small: {model: small.gguf}}\n")
    found: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{[^}]*\}", "x", block.text))
    if {"rule_files", "environment"} & found.keys():
        return
    engines = "engines: {one: {type: generic_process, start_cmd: [x, '{port}']}}\n" if "engines" not in found else ""
    text = block.text + engines
    if "tls_cert_file" in found:
        text = text.replace("/etc/enginerouter", str(tmp_path))
    load_text(text, base_dir=tmp_path, file=block.name, environ=ENVIRONMENT)


@pytest.mark.parametrize("block", [*all_blocks("json"), *all_blocks("toml")], ids=lambda block: block.name)
def test_settings_of_other_programs_can_be_read(block: Block) -> None:
    if block.text.lstrip().startswith("{"):
        json.loads(block.text)
    else:
        tomllib.loads(block.text)


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_metric_that_is_named_is_one(page: Path) -> None:
    known = set(re.findall(r"`(enginerouter_\w+)`", reference.metrics_text()))
    named = set(re.findall(r"\b(enginerouter_[a-z_]+[a-z])\b", page.read_text(encoding="utf-8")))
    assert named <= known


def test_every_page_is_in_an_index() -> None:
    """From the README, by links, to everything."""
    seen: set[Path] = set()
    wanted = [REPOSITORY / "README.md"]
    while wanted:
        page = wanted.pop()
        if page in seen or not page.exists() or page.suffix != ".md":
            continue
        seen.add(page)
        links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
        wanted += [(page.parent / link).resolve() for link in links]
    assert not set(PAGES) - seen


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 150


def test_the_options_of_the_installer_that_pages_name_are_explained() -> None:
    assert {"--yes", "--no-service", "--dry-run", "--print-unit", "--uninstall", "--demo"} <= INSTALL_OPTIONS
    assert blocks(REPOSITORY / "docs/start.md", "bash")
