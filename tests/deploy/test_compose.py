"""The compose file: valid, without secrets in it, reachable from this machine alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from tests.deploy.deployment import COMPOSE, DEPLOY, DOCKERFILE, compose, run_tool

from hasten.serving.server_options import ServerOptions

SERVICES = compose()["services"]


def faults(path: Path) -> str:
    """Return what check-jsonschema says; empty if the file is valid."""
    arguments = ("--builtin-schema", "vendor.compose-spec", path)
    completed = run_tool("check-jsonschema", *arguments, package="the PyPI package check-jsonschema")
    return "" if completed.returncode == 0 else completed.stdout + completed.stderr


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_it_is_a_compose_file():
    assert faults(COMPOSE) == ""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("restart: unless-stopped", "restarts: unless-stopped"),
        ("read_only: true\n  cap_drop: [ALL]", "read_only: true\n  cap_drop: ALL"),
        ("condition: service_healthy", "condition: healthy"),
    ],
)
def test_a_planted_fault_is_seen(tmp_path, old, new):
    text = COMPOSE.read_text(encoding="utf-8")
    assert old in text
    planted = tmp_path / "compose.yaml"
    planted.write_text(text.replace(old, new, 1), encoding="utf-8")
    assert faults(planted) != ""


def test_the_services_are_those_of_the_guide():
    assert SERVICES.keys() == {"hasten", "redis", "prometheus", "grafana"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined(name):
    service = SERVICES[name]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service and "network_mode" not in service
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    if name != "hasten":  # it is built here
        assert re.search(r":v?\d+\.\d+\.\d+", service["image"]), "the version of an image is pinned"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_waits_for_healthy_ones(name):
    for other, how in SERVICES[name].get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"}
        assert "healthcheck" in SERVICES[other] or (other == "hasten" and "HEALTHCHECK" in DOCKERFILE.read_text(encoding="utf-8"))


def test_secrets_are_files_that_the_repository_does_not_hold():
    declared = compose()["secrets"]
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}
    assert used == declared.keys() and all(secret["file"] == f"./secrets/{name}" for name, secret in declared.items())
    assert not (DEPLOY / "secrets").exists() and "deploy/secrets/" in (DEPLOY.parent / ".gitignore").read_text().splitlines()
    for name, service in SERVICES.items():
        text = yaml.safe_dump([service.get("environment"), service.get("command")])
        assert set(re.findall(r"/run/secrets/(\w+)", text)) <= set(service.get("secrets", [])), name
        for variable, value in service.get("environment", {}).items():
            if "PASSWORD" in variable or "KEY" in variable:
                assert variable.endswith("__FILE") and value.startswith("/run/secrets/")
    header = COMPOSE.read_text(encoding="utf-8").split("name: hasten")[0]
    assert all(name in header for name in declared)  # the commands at the top make them


def test_the_redis_server_is_in_a_network_with_hasten_alone():
    assert compose()["networks"]["cache"] == {"internal": True}
    assert [name for name, service in SERVICES.items() if "cache" in service["networks"]] == ["hasten", "redis"]
    assert SERVICES["redis"]["networks"] == ["cache"] and "ports" not in SERVICES["redis"]


def test_hasten_gets_time_to_drain():
    assert seconds(SERVICES["hasten"]["stop_grace_period"]) > ServerOptions().drain_timeout


def test_models_are_mounted_read_only_and_mounted_files_exist():
    (models,) = [volume for volume in SERVICES["hasten"]["volumes"] if isinstance(volume, dict)]
    assert models["target"] == "/models" and models["read_only"] is True
    for name in ("prometheus", "grafana"):
        for volume in SERVICES[name]["volumes"]:
            source, *rest = volume.split(":")
            if source.startswith("./"):
                assert (DEPLOY / source).exists() and rest[-1] == "ro", volume
            else:
                assert source in compose()["volumes"]


def test_prometheus_reaches_hasten_under_a_name_that_it_answers_to():
    assert "--allowed-hosts=hasten" in SERVICES["hasten"]["command"]
    assert set(SERVICES["prometheus"]["networks"]) & set(SERVICES["hasten"]["networks"])
