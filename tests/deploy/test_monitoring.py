"""Prometheus' configuration and Grafana's provisioning fit the compose file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from tests.deploy.deployment import COMPOSE, GRAFANA, PROMETHEUS, compose, run_tool

SERVICES = compose()["services"]
SECRET = "/run/secrets/metrics_key"


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def check(folder: Path, old: str = "", new: str = "") -> int:
    """Return promtool's status for the configuration, with a secret that exists."""
    text = PROMETHEUS.read_text(encoding="utf-8")
    assert SECRET in text and old in text
    (folder / "key").write_text("secret")
    shutil.copytree(PROMETHEUS.parent, folder, dirs_exist_ok=True)
    path = folder / "prometheus.yml"
    path.write_text(text.replace(old, new).replace(SECRET, str(folder / "key")), encoding="utf-8")
    return run_tool("promtool", "check", "config", path, package="Debian's prometheus").returncode


def test_prometheus_reads_its_configuration(tmp_path):
    assert check(tmp_path) == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("scrape_interval", "scrape_intervals"),
        ("scrape_timeout: 10s", "scrape_timeout: 20s"),
        ("job_name: hasten", "job: hasten"),
        ("hasten.rules", "../hasten.rules"),
    ],
)
def test_a_planted_fault_is_seen(tmp_path, old, new):
    assert check(tmp_path, old, new) != 0


def test_prometheus_scrapes_the_service_with_its_own_key():
    (job,) = read(PROMETHEUS)["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["hasten:8000"]}] and "hasten" in SERVICES
    assert "--port=8000" in SERVICES["hasten"]["command"]
    assert job["authorization"]["credentials_file"] == SECRET
    assert "metrics_key" in SERVICES["prometheus"]["secrets"] and f"--api-key-file={SECRET}" in SERVICES["hasten"]["command"]


def test_grafana_has_the_data_source_of_prometheus():
    (source,) = read(GRAFANA / "provisioning/datasources/prometheus.yml")["datasources"]
    port = next(part.rsplit(":", 1)[1] for part in SERVICES["prometheus"]["command"] if "listen-address" in part)
    assert source["type"] == "prometheus" and source["url"] == f"http://prometheus:{port}"
    assert source["jsonData"]["timeInterval"] == read(PROMETHEUS)["global"]["scrape_interval"]


def test_grafana_finds_the_dashboards_where_they_are_mounted():
    (provider,) = read(GRAFANA / "provisioning/dashboards/hasten.yml")["providers"]
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
    dashboards = [json.loads(path.read_text(encoding="utf-8")) for path in (GRAFANA / "dashboards").glob("*.json")]
    assert dashboards and all(dashboard["title"] and dashboard["panels"] for dashboard in dashboards)


def test_no_yaml_file_has_a_key_twice():
    """PyYAML keeps the last of equal keys; this reads the events instead."""
    for path in (PROMETHEUS, COMPOSE, *GRAFANA.rglob("*.yml")):
        assert duplicates(yaml.compose(path.read_text(encoding="utf-8"))) == [], path
    assert duplicates(yaml.compose("a: {b: 1, b: 2}")) == ["b"]


def duplicates(node: yaml.Node) -> list[str]:
    if isinstance(node, yaml.SequenceNode):
        return [name for item in node.value for name in duplicates(item)]
    if not isinstance(node, yaml.MappingNode):
        return []
    names = [key.value for key, _ in node.value]
    below = [name for _, value in node.value for name in duplicates(value)]
    return sorted({name for name in names if names.count(name) > 1}) + below
