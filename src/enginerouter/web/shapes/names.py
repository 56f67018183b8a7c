"""What the lists of aliases and of switchable models answer, typed; see `control`."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired, TypedDict


class AliasTarget(TypedDict):
    """What an alias leads to."""

    target: Annotated[str, "`engine/model`"]
    engine: str
    model: str


class AliasShown(TypedDict):
    """One alias. What only chains have is not there for a rename."""

    id: str
    object: Literal["alias"]
    kind: Literal["rename", "chain"]
    description: str | None
    local_only: bool
    hidden: Annotated[bool, "shown to admin keys only"]
    targets: Annotated[list[AliasTarget], "in their order, those of them that this key may know"]
    unknown: Annotated[list[str], "what it names, and no engine has now"]
    chain: NotRequired[Annotated[list[str], "`engine/model` of its targets"]]
    go_on_after_s: NotRequired[float | None]
    first_byte_timeout_s: NotRequired[float | None]
    on_mismatch: NotRequired[str]
    mix_embeddings: NotRequired[bool]
    retry_unsafe: NotRequired[bool]


class Aliases(TypedDict):
    """Every alias that this key may use."""

    object: Literal["list"]
    data: list[AliasShown]


class AvailableModel(TypedDict):
    """A model that can be switched to."""

    id: str
    name: str
    engine: str
    status: Annotated[str, "the phase of its slot"]


class AvailableModels(TypedDict):
    """What can be switched to."""

    models: list[AvailableModel]
    active: Annotated[str | None, "the model that was used last, of those that are ready here"]


class SwitchingTo(TypedDict):
    """A swap that runs."""

    model: Annotated[str | None, "null: one that this key may not name"]
    step: Annotated[str, "checking, draining, freeing, settling or starting"]
    seconds: float


class SwitchingStatus(TypedDict):
    """What is loaded."""

    status: Literal["idle", "ready", "switching"]
    active: Annotated[str | None, "the model that was used last, of those that are ready here"]
    switching_to: SwitchingTo | None
