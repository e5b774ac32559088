"""A real Prometheus scrapes a server, and every expression of the dashboards evaluates to a sample.

It needs the programs ``prometheus`` and ``promtool`` (Debian's package ``prometheus``), so it belongs to the exhaustive run; CI
compares names and labels (``test_dashboards.py``).
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import pytest
from tests.exhaustive import EXHAUSTIVE
from tests.serving.metrics.test_dashboards import DEPLOY, EXPRESSIONS, filled
from tests.serving.metrics.traffic import Watched, make_traffic

from hasten.cli.top_figures import LATENCIES, quantile

DEADLINE = 90.0  # seconds
CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: hasten
    static_configs: [{{targets: ["{target}"]}}]
"""
# They say that something is wrong: no sample is their good result.
QUIET = frozenset(EXPRESSIONS["alerts"])


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[httpx.Client]:
    """Run Prometheus on a free port and yield a client of its API."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    config = folder / "prometheus.yml"
    config.write_text(CONFIG.format(target=target, rules=DEPLOY / "prometheus/hasten.rules.yml"))
    arguments = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(["prometheus", *arguments], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=10) as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def value_of(client: httpx.Client, expression: str) -> list[object]:
    answer = client.get("/api/v1/query", params={"query": filled(expression)}).json()
    assert answer["status"] == "success", (expression, answer)
    return list(answer["data"]["result"])


def compare_quantiles(queries: httpx.Client) -> None:
    """The quantiles of ``hasten top`` are those of Prometheus over the same buckets."""
    now = str(time.time())
    for name in LATENCIES.values():
        series = queries.get("/api/v1/query", params={"query": f"{name}_bucket", "time": now}).json()["data"]["result"]
        buckets = sorted((float(each["metric"]["le"]), float(each["value"][1])) for each in series)
        for q in (0.01, 0.5, 0.95, 1.0):
            query = {"query": f"histogram_quantile({q}, {name}_bucket)", "time": now}
            (expected,) = queries.get("/api/v1/query", params=query).json()["data"]["result"]
            assert quantile(q, buckets) == pytest.approx(float(expected["value"][1]))


if EXHAUSTIVE:

    def test_every_panel_has_a_sample(serve_watched: Callable[..., AbstractContextManager[Watched]], tmp_path: Path) -> None:
        wanted = {text for expressions in EXPRESSIONS.values() for text in expressions} - QUIET
        end = time.monotonic() + DEADLINE
        with serve_watched() as server, httpx.Client(base_url=server.url, timeout=60) as client:
            with prometheus(tmp_path, server.url.removeprefix("http://")) as queries:
                while not is_ready(queries):
                    make_traffic(client)
                    assert time.monotonic() < end, (tmp_path / "log").read_text()
                missing = wanted
                while missing:
                    make_traffic(client, 5)
                    missing = {text for text in missing if not value_of(queries, text)}
                    assert time.monotonic() < end, missing
                assert all(value_of(queries, text) is not None for text in QUIET)  # they parse
                assert value_of(queries, 'up{job="hasten"} == 1')
                compare_quantiles(queries)
                assert not value_of(queries, "vllm:prompt_token_total")  # negative control
                text = client.get("/metrics").text
            assert len(wanted) > 100
        checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
        problems = [line for line in checked.stderr.splitlines() if line.startswith("hasten_")]
        assert problems == []
        assert "error" not in checked.stderr.lower(), checked.stderr
