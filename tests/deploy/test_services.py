"""The command of each service runs here, without containers: it starts, does its work, and ends on SIGTERM.

Only paths, ports and names of other services are replaced. Grafana is not run: Debian has no package of it.
"""

from __future__ import annotations

import json
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tests.deploy.deployment import DOCKERFILE, PROMETHEUS, UNIT, compose, instructions, last_stage, unit_lines
from tests.served_command import START_SECONDS, ServedCommand, free_port

KEY, METRICS_KEY = "key-of-a-client", "key-of-prometheus"
HASTEN = [sys.executable, "-m", "hasten"]
IMAGE = {part.name: part.text for part in last_stage(instructions(DOCKERFILE.read_text(encoding="utf-8")))}


def replaced(words: list[str], changes: Mapping[str, str]) -> list[str]:
    """Return the words with each text replaced; each has to be there."""
    for old, new in changes.items():
        assert any(old in word for word in words), old
        words = [word.replace(old, new) for word in words]
    return words


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "api_keys").write_text(f"{KEY}\n")
    (folder / "metrics_key").write_text(f"{METRICS_KEY}\n")
    return folder


@pytest.fixture(scope="module")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Run the command of Redis; at the end SIGTERM ends it well."""
    port, folder = free_port(), tmp_path_factory.mktemp("redis")
    command = compose()["services"]["redis"]["command"]
    program = shutil.which(command[0])
    assert program is not None, "these tests need Debian's redis-server"
    with subprocess.Popen([program, *replaced(command[1:], {"6379": str(port)})], cwd=folder, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + START_SECONDS
        while ask_redis(port, "PING") != b"+PONG":
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.01)
            assert time.monotonic() < deadline
        yield port
        process.terminate()
        assert process.wait(START_SECONDS) == 0
    assert list(folder.iterdir()) == []  # nothing on disk


def ask_redis(port: int, *words: str) -> bytes:
    """Return the first line of the answer to a command; empty if nothing listens."""
    with socket.socket() as sock:
        if sock.connect_ex(("127.0.0.1", port)):
            return b""
        sock.sendall((" ".join(words) + "\r\n").encode())
        return sock.makefile("rb").readline().strip()


@pytest.fixture(scope="module")
def hasten(secrets: Path, redis_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCommand]:
    """Run the command of hasten's service; at the end SIGTERM ends it well."""
    assert json.loads(IMAGE["ENTRYPOINT"]) == ["hasten"]
    port = free_port()
    changes = {"8000": str(port), "/run/secrets": str(secrets), "redis:6379": f"127.0.0.1:{redis_port}"}
    command = replaced(compose()["services"]["hasten"]["command"], changes)
    environment = {"HASTEN_CACHE": str(tmp_path_factory.mktemp("cache")), "HF_HUB_OFFLINE": "1"}
    with ServedCommand([*HASTEN, *command], port, environment=environment) as server:
        yield server
        assert server.end() == 0


def test_keys_are_needed_for_all_but_probes(hasten: ServedCommand):
    assert hasten.status("/health") == 200
    assert hasten.status("/v1/models") == 401 == hasten.status("/metrics")
    assert hasten.status("/v1/models", bearer(KEY)) == 200 == hasten.status("/metrics", bearer(METRICS_KEY))
    assert hasten.status("/v1/models", bearer("another")) == 401


def test_it_answers_to_the_name_that_prometheus_uses(hasten: ServedCommand):
    assert hasten.status("/metrics", bearer(METRICS_KEY) | {"Host": "hasten:8000"}) == 200
    assert hasten.status("/metrics", bearer(METRICS_KEY) | {"Host": "evil.example"}) == 403


def test_the_health_check_of_the_image_passes(hasten: ServedCommand):
    words = json.loads(IMAGE["HEALTHCHECK"].split("CMD ", 1)[1])
    assert words[0] == "python"

    def status(port: int) -> int:
        command = replaced([sys.executable, *words[1:]], {"8000": str(port)})
        return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode

    assert status(hasten.port) == 0 and status(free_port()) != 0


def test_equal_requests_are_answered_from_redis(hasten: ServedCommand, redis_port: int):
    body = json.dumps({"model": "demo", "prompt": "def f(", "max_tokens": 4, "temperature": 0})
    answers = [post(hasten, "/v1/completions", body) for _ in range(2)]
    assert answers[0]["choices"] == answers[1]["choices"]
    assert ask_redis(redis_port, "DBSIZE") == b":1"


def post(server: ServedCommand, path: str, body: str) -> dict:
    command = ["curl", "-sf", f"http://{server.address}{path}", "-H", f"Authorization: Bearer {KEY}", "-d", body]
    completed = subprocess.run([*command, "-H", "Content-Type: application/json"], capture_output=True, check=True)
    return json.loads(completed.stdout)


def test_prometheus_scrapes_hasten(hasten: ServedCommand, secrets: Path, tmp_path: Path):
    configuration = PROMETHEUS.read_text(encoding="utf-8")
    changes = {"hasten:8000": hasten.address, "/run/secrets": str(secrets), ": 15s": ": 1s", ": 10s": ": 1s"}
    shutil.copytree(PROMETHEUS.parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / "prometheus.yml").write_text("\n".join(replaced(configuration.splitlines(), changes)))
    port, command = free_port(), compose()["services"]["prometheus"]["command"]
    changes = {"/etc/prometheus": str(tmp_path), "=/prometheus": f"={tmp_path}/data", "0.0.0.0:9090": f"127.0.0.1:{port}"}
    program = shutil.which("prometheus")
    assert program is not None, "these tests need Debian's prometheus"
    with ServedCommand([program, *replaced(command, changes)], port, path="/-/ready") as server:
        deadline = time.monotonic() + START_SECONDS
        while (target := only_target(server)).get("health", "unknown") == "unknown":
            assert time.monotonic() < deadline
            with pytest.raises(subprocess.TimeoutExpired):
                server.process.wait(0.1)
        assert target["health"] == "up", target["lastError"]
        assert server.end() == 0


def only_target(prometheus: ServedCommand) -> dict:
    """Return what Prometheus says of the server that it scrapes; empty before it has read its configuration."""
    found = json.loads(prometheus.get("/api/v1/targets")[1])["data"]["activeTargets"]
    return found[0] if found else {}


def test_the_unit_starts_and_ends(tmp_path: Path):
    """With the configuration of docs/how-to/deploy.md."""
    directives = {name: value for _, name, value in unit_lines(UNIT.read_text(encoding="utf-8"))}
    (tmp_path / "api_keys").write_text(KEY)
    port = free_port()
    (tmp_path / "serve.yaml").write_text(
        f"model: demo\nhost: 127.0.0.1\nport: {port}\nmax_model_len: 512\nkv_cache_memory: 64MiB\n"
    )
    changes = {"/etc/hasten": str(tmp_path), "%d": str(tmp_path)}
    command = replaced(shlex.split(directives["ExecStart"]), changes)
    assert command[0] == "/opt/hasten/bin/hasten"
    environment = dict(word.split("=") for word in directives["Environment"].replace("%C", str(tmp_path)).split())
    assert directives["KillSignal"] == "SIGTERM"
    with ServedCommand([*HASTEN, *command[1:]], port, environment=environment) as server:
        assert server.status("/v1/models") == 401 and server.status("/v1/models", bearer(KEY)) == 200
        assert server.end() == 0
