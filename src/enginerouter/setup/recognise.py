"""Which engine answers at a port: by what it says on a few harmless paths, and by the command it was started with.

Many answer alike: `/health` tells nothing apart, `/api/version` is Ollama's, KoboldCpp's and LocalAI's, port 8080 is
five programs'. Nothing asked here loads, wakes or generates (SGLang's `/health` would). Plain functions over answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, Final

from enginerouter.engines.commandline import model_ids
from enginerouter.engines.http_control import Said

# What is asked, all at once.
PATHS: Final = (
    *("/v1/models", "/v1", "/", "/api/version", "/api/tags", "/props", "/api/extra/version", "/api/v1/models"),
    *("/v1/model", "/system", "/running", "/api/v1/health", "/v1/internal/model/info"),
)
# Where each listens unless told otherwise. The same port may be several programs'.
PORTS: Final[Mapping[int, str]] = MappingProxyType(
    {
        11434: "Ollama",
        8080: "llama.cpp, LocalAI, MLX, ramalama",
        9931: "llama.cpp",
        8000: "vLLM, MAX",
        30000: "SGLang",
        1234: "LM Studio",
        5000: "TabbyAPI",
        5001: "KoboldCpp",
    }
)
TITLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "llamacpp": "llama.cpp",
        "vllm": "vLLM",
        "sglang": "SGLang",
        "koboldcpp": "KoboldCpp",
        "mlx": "MLX",
        "max": "MAX",
        "ramalama": "ramalama",
        "tabbyapi": "TabbyAPI",
        "lmstudio": "LM Studio",
        "localai": "LocalAI",
        "ollama": "Ollama",
        "enginerouter": "enginerouter",
        "llama-swap": "llama-swap",
        "lemonade": "Lemonade",
        "textgen": "text-generation-webui",
    }
)
# Recognised, but nothing that is configured from here.
ROUTERS: Final = ("enginerouter", "llama-swap")
OTHERS: Final = ("lemonade", "textgen")
# Programs that start engines themselves, on ports of their own.
PARENTS: Final = ("ollama", "lmstudio", "localai", "lemonade", *ROUTERS)
_OWNERS: Final = {
    "llamacpp": "llamacpp", "vllm": "vllm", "sglang": "sglang", "koboldcpp": "koboldcpp", "tabbyapi": "tabbyapi",
    "llama-swap": "llama-swap",
}  # fmt: skip

Answers = Mapping[str, Said]


@dataclass(frozen=True, slots=True)
class FoundModel:
    """`upstream_id`: what the engine calls it, where that is not its id."""

    id: str
    context_length: int | None = None
    upstream_id: str | None = None


def kind_of(answers: Answers, command_kind: str | None) -> str | None:
    """The engine, by its preset's name. What is said counts; the command decides where that tells nothing apart."""
    said = _kind_said(answers)
    if said == "llamacpp" and command_kind == "ramalama":
        return "ramalama"
    return said or (command_kind if answers else None)


def _kind_said(answers: Answers) -> str | None:
    root = _document(answers, "/v1")
    if isinstance(root, dict) and root.get("name") == "enginerouter":
        return "enginerouter"
    owners = {str(entry.get("owned_by") or "").lower() for entry in _entries(answers, "/v1/models")}
    for owner, kind in _OWNERS.items():
        if owner in owners:
            return kind
    tests = (
        ("llama-swap", _has(answers, "/running", "running")),
        ("koboldcpp", "koboldcpp" in str(_value(answers, "/api/extra/version", "result")).lower()),
        ("localai", _has(answers, "/system", "loaded_models") or _has(answers, "/system", "backends")),
        ("lemonade", _has(answers, "/api/v1/health", "all_models_loaded")),
        ("lmstudio", _is_lm_studio(answers)),
        ("ollama", "ollama is running" in _text(answers, "/").lower() and _has(answers, "/api/version", "version")),
        ("sglang", "sglang is running" in _text(answers, "/").lower()),
        ("textgen", _has(answers, "/v1/internal/model/info", "model_name")),
        ("tabbyapi", _is_tabby(answers)),
        ("llamacpp", _is_llama(answers)),
        ("max", any(e.get("owned_by") == "" and "max_model_len" in e for e in _entries(answers, "/v1/models"))),
    )
    return next((kind for kind, is_so in tests if is_so), None)


def _is_lm_studio(answers: Answers) -> bool:
    """Its own list; or, unlike all others, a path that it does not know is 200 with an error inside."""
    if any("loaded_instances" in entry for entry in _entries(answers, "/api/v1/models")):
        return True
    return any(
        said.status == 200 and str(_value(answers, path, "error")).startswith("Unexpected endpoint")
        for path, said in answers.items()
    )


def _is_tabby(answers: Answers) -> bool:
    """Only it has `/v1/model`; without a model that is 503, without a key 401, both with a `detail`."""
    if str(_value(answers, "/v1/model", "owned_by")).lower() == "tabbyapi":
        return True
    said = answers.get("/v1/model")
    return said is not None and said.status in (401, 403, 503) and _has(answers, "/v1/model", "detail", ok_only=False)


def _is_llama(answers: Answers) -> bool:
    if _has(answers, "/props", "default_generation_settings") or _value(answers, "/props", "role") == "router":
        return True
    said = answers.get("/v1/models")
    # While it loads, every path says so.
    return said is not None and said.status == 503 and "Loading model" in said.body.decode("utf-8", "replace")


def command_kind(argv: Sequence[str]) -> str | None:
    """The engine that a command starts, by its preset's name."""
    words = [PurePath(word).name.lower().removesuffix(".exe") for word in argv[:6]]
    whole = " ".join(argv[:8]).lower()
    if not words:
        return None
    for name, kind in (("llama-server", "llamacpp"), ("koboldcpp", "koboldcpp")):
        if any(word.startswith(name) for word in words):  # perhaps behind a loader, numactl or nice
            return kind
    is_python = words[0].startswith(("python", "pypy", "uv"))
    first = words[1] if is_python and len(words) > 1 and not words[1].startswith("-") else words[0]
    patterns = (
        (r"(^| )\S*-m enginerouter( |$)", "enginerouter"),
        (r"vllm\.entrypoints", "vllm"),
        (r"sglang\.launch_server", "sglang"),
        (r"mlx_lm(\.server| server)", "mlx"),
        (r"tabbyapi/(main|start)\.py", "tabbyapi"),
    )
    for pattern, kind in patterns:
        if re.search(pattern, whole):
            return kind
    named = {
        "vllm": "vllm", "sglang": "sglang", "ollama": "ollama", "local-ai": "localai", "ramalama": "ramalama",
        "llama-swap": "llama-swap", "enginerouter": "enginerouter", "mlx_lm.server": "mlx", "lemond": "lemonade",
        "lm-studio": "lmstudio", "lms": "lmstudio", "llmster": "lmstudio",
    }  # fmt: skip
    if first == "max" and "serve" in words:
        return "max"
    return named.get(first)


def needs_key(answers: Answers) -> bool:
    """Whether it did not list its models because nobody said who asks."""
    said = answers.get("/v1/models")
    return said is not None and said.status in (401, 403)


def models_of(kind: str, answers: Answers, argv: Sequence[str]) -> tuple[FoundModel, ...]:
    """What it serves, with names that may stand in a configuration. What it would download, or only has, is not it."""
    if kind == "mlx":  # lists the download cache
        launched = [*model_ids(argv)]
        return tuple(_renamed(PurePath(name).name, name) for name in launched[:1])
    path = {"ollama": "/api/tags", "lmstudio": "/api/v1/models"}.get(kind, "/v1/models")
    found: dict[str, FoundModel] = {}
    for entry in _entries(answers, path):
        name = next((str(entry[key]) for key in ("id", "key", "model", "name") if entry.get(key)), "")
        if not name or not name.isprintable() or name != name.strip():
            continue
        model = _renamed(name.removeprefix("koboldcpp/"), name) if kind == "koboldcpp" else FoundModel(name)
        context = _context(entry) or (_default_context(answers) if kind in ("llamacpp", "ramalama") else None)
        found.setdefault(model.id, FoundModel(model.id, context, model.upstream_id))
    return tuple(found.values())


def _renamed(short: str, name: str) -> FoundModel:
    return FoundModel(short or name, upstream_id=name if short and short != name else None)


def _context(entry: Mapping[str, Any]) -> int | None:
    meta = entry.get("meta")
    said = (
        meta.get("n_ctx") if isinstance(meta, dict) else None,
        entry.get("max_model_len"),
        entry.get("max_context_length"),
    )
    return next((n for n in said if isinstance(n, int) and not isinstance(n, bool) and n > 0), None)


def _default_context(answers: Answers) -> int | None:
    settings = _value(answers, "/props", "default_generation_settings")
    n = settings.get("n_ctx") if isinstance(settings, dict) else None
    return n if isinstance(n, int) and n > 0 else None


# --- looking into answers


def _document(answers: Answers, path: str, *, ok_only: bool = True) -> Any:
    said = answers.get(path)
    return said.document if said is not None and (said.status == 200 or not ok_only) else None


def _value(answers: Answers, path: str, key: str, *, ok_only: bool = True) -> Any:
    document = _document(answers, path, ok_only=ok_only)
    return document.get(key) if isinstance(document, dict) else None


def _has(answers: Answers, path: str, key: str, *, ok_only: bool = True) -> bool:
    document = _document(answers, path, ok_only=ok_only)
    return isinstance(document, dict) and key in document


def _text(answers: Answers, path: str) -> str:
    said = answers.get(path)
    return said.body[:2000].decode("utf-8", "replace") if said is not None and said.status == 200 else ""


def _entries(answers: Answers, path: str) -> Iterable[Mapping[str, Any]]:
    document = _document(answers, path)
    if isinstance(document, dict):
        # llama-server has both; `data` is the one with the ids.
        document = next((document[key] for key in ("data", "models") if isinstance(document.get(key), list)), None)
    return [entry for entry in document if isinstance(entry, dict)] if isinstance(document, list) else []
