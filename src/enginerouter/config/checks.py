"""Cross-checks: what no single key can tell. Each is a plain function that reports what it finds."""

from __future__ import annotations

from importlib.util import find_spec

from enginerouter.config.check_engines import check_engines
from enginerouter.config.check_names import check_names
from enginerouter.config.check_params import check_params
from enginerouter.config.draft import Draft
from enginerouter.config.forms import is_loopback
from enginerouter.config.model import Config
from enginerouter.config.report import Report


def check_config(draft: Draft, report: Report) -> None:
    """Run all checks."""
    check_top_level(draft.config, report)
    check_cache(draft.config, report)
    check_engines(draft, report)
    check_names(draft, report)
    check_params(draft, report)


def check_cache(config: Config, report: Report) -> None:
    cache = config.cache
    if cache is not None and cache.store != "memory" and find_spec("redis") is None:
        report.error(
            ("cache", "store"),
            "a Redis needs the Python package 'redis', which is not installed",
            "pip install 'enginerouter[redis]', or store: memory",
        )


def check_top_level(config: Config, report: Report) -> None:
    if config.swap_min_residency_s > config.swap_max_wait_s:
        report.error(
            ("swap_min_residency_s",),
            f"must not be above swap_max_wait_s ({config.swap_max_wait_s:g})",
            "nobody could be promised that wait",
        )
    if (config.tls_cert_file is None) != (config.tls_key_file is None):
        given = "tls_cert_file" if config.tls_cert_file else "tls_key_file"
        report.error((given,), "tls_cert_file and tls_key_file must be given together")
    if not config.api_keys and not is_loopback(config.host):
        report.warn(
            ("host",),
            f"anybody who can reach {config.host} controls this router: no api_keys are set",
            "set api_keys, or host: 127.0.0.1",
        )
