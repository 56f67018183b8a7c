"""Which model ids a command line names. Plain functions over words; nothing is looked up.

An engine that does not run cannot be asked. What it was told to serve can be read:
`--served-model-name A B`, `--alias a,b`, `-m /models/x.gguf`, `--model=repo/name`, `vllm serve repo/name`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import PurePath
from typing import Final

_NAME_FLAGS: Final = ("--served-model-name", "--alias", "-a")
_MODEL_FLAGS: Final = ("-m", "--model", "--model-path", "--model-name", "--hf-repo", "-hf", "-hfr")
_SHELLS: Final = ("sh", "bash", "dash", "zsh", "fish")
_CONTAINERS: Final = ("docker", "podman", "nerdctl")
# Words after which a model stands without a flag: `vllm serve MODEL`, `local-ai run MODEL`.
_SUBCOMMANDS: Final = {"vllm": "serve", "local-ai": "run", "ramalama": "serve"}
# Flags of those that take no value, so that the word behind them may be the model.
_BARE: Final = ("-d", "--detach", "--debug", "--nocontainer", "--trust-remote-code", "--enforce-eager")


def model_ids(argv: Sequence[str]) -> tuple[str, ...]:
    """The ids, most telling first: given names, then the file's; a model that has a given name only by that.

    A GGUF file is known by its file name beside its given name: llama.cpp takes any.
    """
    words = [*_unwrapped(argv)]
    names = [name for flag, value in _values(words, _NAME_FLAGS) for name in _names(flag, value)]
    models = [value for _, value in _values(words, _MODEL_FLAGS)] or [*_positional(words)]
    files = [PurePath(model).name for model in models if model.lower().endswith(".gguf")]
    ids = names + [name for name in files if name.lower() != ".gguf"]
    if not names:
        ids += [model for model in models if not model.lower().endswith(".gguf")]
    return tuple(dict.fromkeys(i for i in ids if i and i.isprintable() and i == i.strip() and "{" not in i))


def _unwrapped(argv: Sequence[str]) -> Sequence[str]:
    """The words that matter: what a shell is given to run, and not what Python's own `-m` names."""
    words = [str(word) for word in argv]
    if not words:
        return words
    program = PurePath(words[0]).name.lower()
    if program in _SHELLS:
        for flag, script in pairwise(words[1:]):
            if flag.startswith("-") and flag.endswith("c"):
                try:
                    inner = shlex.split(script, comments=True)
                except ValueError:
                    return []
                return inner[1:] if inner[:1] == ["exec"] else inner
    if program.startswith(("python", "pypy")) and "-m" in words:
        at = words.index("-m")
        return [*words[:at], *words[at + 2 :]]
    if program in _CONTAINERS and "-m" in words:
        at = words.index("-m")  # `docker run -m 16g`: its memory
        if words[at + 1 : at + 2] and words[at + 1][:1].isdigit():
            return [*words[:at], *words[at + 2 :]]
    return words


def _values(words: Sequence[str], flags: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each value of these flags, also `--flag=value`; of `--served-model-name` all up to the next flag."""
    for n, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag not in flags:
            continue
        if equals:
            yield flag, value
            continue
        for following in words[n + 1 :]:
            if following.startswith("-"):
                break
            yield flag, following
            if flag != "--served-model-name":
                break


def _names(flag: str, value: str) -> list[str]:
    """llama-server takes a comma list of aliases."""
    return value.split(",") if flag in ("--alias", "-a") else [value]


def _positional(words: Sequence[str]) -> Iterator[str]:
    """The model of `vllm serve MODEL` and its like: the first word behind the subcommand that no flag owns."""
    for n, word in enumerate(words[:4]):
        subcommand = _SUBCOMMANDS.get(PurePath(word).name.lower())
        if subcommand is None or subcommand not in words[n + 1 :]:
            continue
        rest = words[words.index(subcommand, n + 1) + 1 :]
        owner = ""
        for following in rest:
            if following.startswith("-"):
                owner = "" if "=" in following or following in _BARE else following
            elif owner:
                owner = ""
            else:
                yield following
                return
