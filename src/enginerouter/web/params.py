"""The parameter rules of one configuration, by the model they are for. A reload makes new ones."""

from __future__ import annotations

from collections.abc import Mapping

from enginerouter.config.model import Config
from enginerouter.dialects.params import NO_RULES, ParamRules
from enginerouter.dialects.thinking import form_of
from enginerouter.routing.target import Target


class ModelParams:
    """What declared models change in requests. Whatever name led to the model, the rules are its own."""

    __slots__ = ("_rules",)

    def __init__(self, config: Config) -> None:
        rules = {
            (model.engine, model.id): ParamRules(
                model.strip_params,
                model.default_params,
                model.set_params,
                model.disable_thinking_below_max_tokens,
                form_of(config.engines[model.engine].type),
            )
            for model in config.models
            if model.engine in config.engines
        }
        self._rules: Mapping[tuple[str, str], ParamRules] = {k: r for k, r in rules.items() if not r.is_empty}

    def of(self, target: Target) -> ParamRules:
        """`NO_RULES`, that very object, where nothing is changed."""
        return self._rules.get((target.engine, target.model_id), NO_RULES)
