"""Completions of a shell, made from the argument parser, so that they cannot differ from it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping

SHELLS = ("bash", "zsh", "fish")
# `routerctl completion names`: what a running router has names for, a line each.
NAMES = "names"


def completion(shell: str, parser: argparse.ArgumentParser) -> str:
    """A script for one of SHELLS."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](parser)


def _commands(parser: argparse.ArgumentParser) -> Mapping[str, tuple[argparse.ArgumentParser, str]]:
    """The commands, each with its parser and its help."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            return {name: (sub, texts.get(name, "")) for name, sub in action.choices.items()}
    return {}


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings]


def _values(parser: argparse.ArgumentParser) -> list[str]:
    """What can stand as the command's own argument, where that is a fixed set."""
    return [str(c) for a in parser._actions if not a.option_strings for c in a.choices or ()]


def _takes_name(parser: argparse.ArgumentParser) -> bool:
    """Whether a command takes the name of a model or an engine."""
    return any(
        not a.option_strings and a.metavar in ("NAME", "MODEL", "ENGINE", "ENGINE[/MODEL]") for a in parser._actions
    )


def _bash(parser: argparse.ArgumentParser) -> str:
    name = parser.prog
    commands = _commands(parser)
    # Of names there come only such as no shell takes for more than text: compgen expands its words.
    asked = f'" $({name} completion {NAMES} 2>/dev/null)"'
    cases = "".join(
        f"        {command}) words='{_joined([*_options(sub), *_values(sub)])}'{asked if _takes_name(sub) else ''} ;;\n"
        for command, (sub, _) in commands.items()
    )
    return (
        f"# bash completion for {name}: source <({name} completion bash)\n"
        f"_{name}() {{\n"
        "    local word words command=\n"
        "    # A colon ends a word for bash, and is part of many names.\n"
        "    local typed=${COMP_LINE:0:COMP_POINT} index\n"
        "    typed=${typed##*[[:space:]]}\n"
        '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do\n'
        f"        case $word in {'|'.join(commands)}) command=$word && break ;; esac\n"
        "    done\n"
        "    case $command in\n"
        f"        '') words='{_joined([*_options(parser), *commands])}' ;;\n"
        f"{cases}"
        "    esac\n"
        '    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$typed")\n'
        '    for index in "${!COMPREPLY[@]}"; do\n'
        '        COMPREPLY[index]=${COMPREPLY[index]#"${typed%"${typed##*:}"}"}\n'
        "    done\n"
        "}\n"
        f"complete -o default -F _{name} {name}\n"
    )


def _zsh(parser: argparse.ArgumentParser) -> str:
    name = parser.prog
    commands = _commands(parser)
    described = "".join(f"    {_single(f'{command}:{text}')}\n" for command, (_, text) in commands.items())
    cases = "".join(
        f"        {command}) compadd -- {_joined([*_options(sub), *_values(sub)])}"
        f"{f' $({name} completion {NAMES} 2>/dev/null)' if _takes_name(sub) else ''} ;;\n"
        for command, (sub, _) in commands.items()
    )
    return (
        f"#compdef {name}\n# zsh completion: {name} completion zsh > ~/.zfunc/_{name}\n"
        f"local -a commands\ncommands=(\n{described})\n"
        "if (( CURRENT == 2 )); then\n"
        f"    _describe command commands\n    compadd -- {_joined(_options(parser))}\n"
        f"else\n    case $words[2] in\n{cases}    esac\nfi\n"
    )


def _fish(parser: argparse.ArgumentParser) -> str:
    name = parser.prog
    lines = [f"# fish completion: {name} completion fish > ~/.config/fish/completions/{name}.fish"]
    for command, (sub, text) in _commands(parser).items():
        lines.append(f"complete -c {name} -n __fish_use_subcommand -f -a {command} -d {_single(text)}")
        seen = f"'__fish_seen_subcommand_from {command}'"
        if _takes_name(sub):
            lines.append(f"complete -c {name} -n {seen} -f -a '({name} completion {NAMES} 2>/dev/null)'")
        for action in sub._actions:
            for option in action.option_strings:
                flag = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
                lines.append(f"complete -c {name} -n {seen} {flag} -d {_single(_help_of(action))}")
    return "\n".join(lines) + "\n"


def _help_of(action: argparse.Action) -> str:
    return "" if action.help in (None, argparse.SUPPRESS) else str(action.help)


def _joined(words: Iterable[str]) -> str:
    return " ".join(words)


def _single(text: str) -> str:
    """One word for a shell, in single quotes."""
    return "'" + text.replace("'", "'\\''") + "'"
