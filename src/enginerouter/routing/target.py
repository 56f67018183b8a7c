"""What a name leads to: one target, or a chain of them."""

from __future__ import annotations

from dataclasses import dataclass

from enginerouter.config.model import Alias
from enginerouter.slots import SlotId


@dataclass(frozen=True, slots=True)
class Target:
    """What a name stands for. `asked` is the canonical name (alias or model id), `upstream_model` the engine's own.

    `label` is `engine/model`, for logs, metrics and `X-EngineRouter-Resolved`. `is_glob`: `asked` is an alias glob.
    `is_declared` False: the model is in no configuration, so its name is no label of metrics.
    `same_as` labels models whose embeddings mix. `stays_local`: an alias said that it must not leave the machine.
    """

    asked: str
    model_id: str
    engine: str
    slot: SlotId
    upstream_model: str
    label: str
    first_byte_timeout_s: float | None = None
    is_glob: bool = False
    is_declared: bool = True
    same_as: str | None = None
    stays_local: bool = False


@dataclass(frozen=True, slots=True)
class Chain:
    """An alias whose targets are tried in order: aliases in it resolved, every target once.

    It is what the configuration said when the request came, so a reload changes nothing for a walk that has begun.
    `unknown` are entries that no engine has now.
    """

    alias: Alias
    targets: tuple[Target, ...]
    unknown: tuple[str, ...] = ()
    is_glob: bool = False

    @property
    def asked(self) -> str:
        return self.alias.name


Route = Target | Chain
