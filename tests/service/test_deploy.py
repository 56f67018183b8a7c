"""What is in deploy/ fits the program: units, metrics, container, HAProxy's file."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from enginerouter.config.load import load
from enginerouter.config.model import Config

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
METRIC = re.compile(r"\benginerouter_[a-z_]+")
DECLARED = re.compile(r'(?:counter|gauge|histogram)\(\s*"([a-z_]+)"')


def declared() -> set[str]:
    """Every metric that some module declares."""
    sources = (REPOSITORY / "src/enginerouter").rglob("*.py")
    return {f"enginerouter_{name}" for source in sources for name in DECLARED.findall(source.read_text())}


@pytest.mark.parametrize("file", ["rules.yaml", "grafana-dashboard.json"])
def test_alerts_and_dashboard_name_only_metrics_there_are(file: str) -> None:
    text = (DEPLOY / "monitoring" / file).read_text()
    named = {re.sub(r"_(bucket|sum|count)$", "", name) for name in METRIC.findall(text)}
    assert named
    assert named <= declared()


def test_the_dashboard_is_one_and_its_panels_do_not_overlap() -> None:
    board = json.loads((DEPLOY / "monitoring/grafana-dashboard.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert all(0 <= x < 24 for x, _ in cells)
        taken |= cells


def test_every_alert_says_what_it_is_about() -> None:
    rules = yaml.safe_load((DEPLOY / "monitoring/rules.yaml").read_text())["groups"][0]["rules"]
    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in rules)


def test_the_containers_configuration_loads_and_its_compose_file_fits_it() -> None:
    config = load(DEPLOY / "docker/router/config.yaml").config
    compose = yaml.safe_load((DEPLOY / "docker/compose.yaml").read_text())
    router = compose["services"]["enginerouter"]
    assert config.host == "0.0.0.0"
    assert router["ports"] == [f"127.0.0.1:{config.port}:{config.port}"]
    # Open WebUI names the router by its service's name, which the Host rule must let pass.
    assert "enginerouter" in config.allowed_hosts
    assert (REPOSITORY / router["build"]["dockerfile"]).exists()
    assert config.engines["ollama"].base_url == "http://ollama:11434"
    # Two connections to the same router would list every model twice.
    web_ui = compose["services"]["open-webui"]["environment"]
    assert ("OPENAI_API_BASE_URL" in web_ui, "OLLAMA_BASE_URL" in web_ui) == (True, False)
    assert web_ui["ENABLE_OLLAMA_API"] == "false"


def test_opencodes_provider_leads_to_the_port_that_is_ours_by_default() -> None:
    found = json.loads((DEPLOY / "opencode.json").read_text())
    provider = found["provider"]["enginerouter"]
    assert provider["options"]["baseURL"] == f"http://127.0.0.1:{Config().port}/v1"
    for wanted in ("model", "small_model"):
        name, _, model = found[wanted].partition("/")
        assert model in found["provider"][name]["models"]


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="needs haproxy")
def test_haproxy_accepts_its_file(tmp_path: Path) -> None:
    said = subprocess.run(
        ["haproxy", "-c", "-f", str(DEPLOY / "haproxy/haproxy.cfg")],
        env={
            "PATH": "/usr/sbin:/usr/bin",
            "LISTEN": "127.0.0.1:8080",
            "BOX_A": "10.0.0.1:8077",
            "BOX_B": "10.0.0.2:8077",
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert said.returncode == 0, said.stderr + said.stdout
