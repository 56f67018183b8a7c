"""A gateway's `aliases.yaml` becomes ours: its chains as they are, and an engine for each provider they name.

    aliases: {house/fast: {description: …, chain: [ollama/qwen3:8b, groq/llama-3.1-8b-instant]}}
    default: house/fast

The file does not say where its providers are: known ones are written with their address and the usual variable for
their key, others with an address to fill in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from enginerouter.setup.emit import Noted
from enginerouter.setup.foreign import Foreign, Imported

_LOCAL_OLLAMA: Final = {"type": "ollama", "base_url": "http://127.0.0.1:11434"}
_GEMINI: Final = "https://generativelanguage.googleapis.com/v1beta/openai"
# Name → base URL and the variable with the key.
_PROVIDERS: Final[Mapping[str, tuple[str, str]]] = {
    "openrouter": ("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "groq": ("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "together": ("https://api.together.xyz/v1", "TOGETHER_API_KEY"),
    "gemini": (_GEMINI, "GEMINI_API_KEY"),
    "google": (_GEMINI, "GOOGLE_API_KEY"),
    "openai": ("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "deepseek": ("https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    "mistral": ("https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
}


def convert(foreign: Foreign) -> Imported:
    imported = Imported()
    document = imported.document
    document.head += [
        f"Imported from {foreign.path.name} of a gateway. Its chains are as they were; engines were made for the "
        "providers they name.",
    ]
    document.settings["port"] = 8077
    aliases = foreign.mapping(foreign.data, "aliases", "")
    providers: dict[str, None] = {}
    for name in aliases:
        at = f"aliases.{name}."
        raw = foreign.mapping(aliases, name, "aliases.")
        alias = _alias(foreign, raw, at, aliases, providers)
        for key in raw.keys() - {"chain", "description"}:
            imported.notes.append(f"{at}{key} has no equal")
        if alias:
            document.aliases[name] = Noted(alias)
    for provider in providers:
        document.engines[provider] = _engine(provider, imported)
        if any(name.startswith(f"{provider}/") for name in aliases):
            foreign.wrong("aliases", f"an alias begins with '{provider}/', which is also a provider", "rename it")
    if default := foreign.text(foreign.data, "default", ""):
        if default not in aliases:
            foreign.wrong("default", f"there is no alias {default!r}")
        document.settings["default_model"] = default
    for key in foreign.data.keys() - {"aliases", "default"}:
        imported.notes.append(f"{key} has no equal: not known to this importer")
    return imported


def _alias(
    foreign: Foreign, raw: Mapping[str, Any], at: str, aliases: Mapping[str, Any], providers: dict[str, None]
) -> dict[str, Any]:
    chain = foreign.words(raw, "chain", at)
    if not chain:
        foreign.wrong(f"{at}chain", "names no target")
        return {}
    entries = [_entry(entry, aliases, providers) for entry in chain]
    alias: dict[str, Any] = {"chain": entries}
    if description := foreign.text(raw, "description", at):
        alias["description"] = description
    return alias


def _entry(entry: str, aliases: Mapping[str, Any], providers: dict[str, None]) -> str:
    """`provider/model`, an alias, or a bare model, which goes to Ollama there."""
    if entry in aliases:
        return entry
    provider, slash, _ = entry.partition("/")
    if not slash:
        provider, entry = "ollama", f"ollama/{entry}"
    providers.setdefault(provider)
    return entry


def _engine(provider: str, imported: Imported) -> Noted:
    if provider == "ollama":
        return Noted(_LOCAL_OLLAMA, ("CHANGE the address, if the daemon is on another machine.",))
    if provider in _PROVIDERS:
        base, variable = _PROVIDERS[provider]
        return Noted({"type": "remote", "base_url": base, "api_key_env": variable})
    host = re.sub(r"[^a-z0-9-]", "-", provider.lower()).strip("-") or "provider"
    imported.notes.append(
        f"engines.{provider}.base_url is to be filled in: the gateway's file does not say where it is"
    )
    note = "CHANGE: where is it? Until then chains pass it over. A process of this machine: type generic_process."
    return Noted({"type": "remote", "base_url": f"https://{host}.invalid/v1"}, (note,))
