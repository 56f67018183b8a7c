"""Cross-checks of what models change in requests: paths that can be walked."""

from __future__ import annotations

from collections.abc import Iterable

from enginerouter.config.draft import Draft
from enginerouter.config.report import At, Report

# The router has decided on these before it changes anything.
_RESERVED = {"model": "use upstream_id", "stream": "the client waits for the kind of answer it asked for"}


def check_params(draft: Draft, report: Report) -> None:
    for n, model in zip(draft.model_positions, draft.config.models, strict=True):
        at: At = ("models", n)
        for place, path in enumerate(model.strip_params):
            _check_path(path, (*at, "strip_params", place), report)
        for key, params in (("default_params", model.default_params), ("set_params", model.set_params)):
            for path in params:
                _check_path(path, (*at, key, path), report)
            _check_nesting(params, (*at, key), report)


def _check_path(path: str, at: At, report: Report) -> None:
    first = path.partition(".")[0]
    if not all(path.split(".")):
        report.error(at, f"{path!r} is no path of keys", "write it like options.num_predict")
    elif first in _RESERVED:
        report.error(at, f"{first!r} cannot be changed here", _RESERVED[first])


def _check_nesting(paths: Iterable[str], at: At, report: Report) -> None:
    """`options` and `options.num_ctx` would overwrite each other."""
    known = set(paths)
    for path in sorted(known):
        above = path.rpartition(".")[0]
        while above:
            if above in known:
                report.error((*at, path), f"is inside {above!r}, which is given too", "write one of them")
                break
            above = above.rpartition(".")[0]
