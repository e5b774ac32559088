"""Every expression of vLLM's dashboards, and of our own, asks for series that a server has."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tests.serving.metrics.promql import Selector, missing, selectors
from tests.serving.metrics.traffic import make_traffic, watched_server
from tests.serving.metrics.vllm_dashboards import DASHBOARDS

from hasten.entrypoints.async_llm import AsyncLLM
from hasten.serving.models.single import SingleModel

DEPLOY = Path(__file__).parents[3] / "deploy"
ALL = ("$Deployment_id", "$model", "$job", "$instance", "$engine")
VARIABLES = {"$model_name": "demo", "$ttft_slo": "0.5", "$tpot_slo": "0.05", **dict.fromkeys(ALL, ".*")}
Samples = list[tuple[str, Mapping[str, str]]]


def own_expressions() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana/dashboards/hasten.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def alert_expressions() -> list[str]:
    groups = yaml.safe_load((DEPLOY / "prometheus/hasten.rules.yml").read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def filled(expression: str) -> str:
    """Return an expression with the values that Grafana would put in for its variables."""
    for variable in sorted(VARIABLES, key=len, reverse=True):
        expression = expression.replace(f'"{variable}"', f'"{VARIABLES[variable]}"')
    return expression.replace("$__rate_interval", "10s").replace("$__range", "10s")


EXPRESSIONS = {**DASHBOARDS, "own": tuple(own_expressions()), "alerts": tuple(alert_expressions())}


@pytest.fixture(scope="module")
def samples(drafting_llm: AsyncLLM) -> Samples:
    with watched_server(SingleModel("demo", drafting_llm)) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        make_traffic(client)
        text = client.get("/metrics").text
    scraped: Samples = [(each.name, each.labels) for family in text_string_to_metric_families(text) for each in family.samples]
    target = {"job": "hasten", "instance": "127.0.0.1"}  # labels and a series that Prometheus adds
    return [*[(name, {**target, **labels}) for name, labels in scraped], ("up", target)]


@pytest.mark.parametrize("dashboard", EXPRESSIONS)
def test_every_panel_has_its_series(samples: Samples, dashboard: str) -> None:
    not_yet = ("status", "=", "5xx")  # no request has failed; the panel says "or vector(0)"
    found = {
        text: [each for each in missing(filled(text), samples) if not_yet not in each.matchers] for text in EXPRESSIONS[dashboard]
    }
    assert {text: gone for text, gone in found.items() if gone} == {}
    assert len(found) >= 4


def test_a_missing_series_is_found(samples: Samples) -> None:
    """Negative control: a name, a label, and a value of a label that the server does not have."""
    for wrong in (
        'rate(vllm:prompt_token_total{model_name="demo"}[1m])',
        'vllm:num_requests_running{model="demo"}',
        'sum by (le) (rate(vllm:request_success_total{finished_reason="eos"}[5m])) / 2',
    ):
        assert len(missing(wrong, samples)) == 1, wrong


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("up", ["up"]),
        ('sum by(le) (rate(a:b_total[5m])) / on (x) group_left (y) c{d="}("} > 0.5', ["a:b_total", "c"]),
        ('histogram_quantile(0.9, sum without (i) (rate(m_bucket{a=~"x|y", b!="z"}[$__range])))', ["m_bucket"]),
        ('count(up{job="j"} == 0) or vector(0)', ["up"]),
        ("(1e3 + e_total offset 5m) and f", ["e_total", "f"]),
    ],
)
def test_the_selectors_of_an_expression(expression: str, expected: list[str]) -> None:
    assert [each.name for each in selectors(expression)] == expected


def test_matchers() -> None:
    (selector,) = selectors('m{a="1", b!="2", c=~"x.*", d!~"y"}')
    assert selector.matches("m", {"a": "1", "b": "3", "c": "xy", "d": "yy"})
    for labels in ({"a": "2", "c": "x"}, {"a": "1", "b": "2", "c": "x"}, {"a": "1", "c": "zx"}, {"a": "1", "c": "x", "d": "y"}):
        assert not selector.matches("m", labels), labels
    assert not Selector("n", ()).matches("m", {})


def test_our_dashboard_is_sound() -> None:
    """Unique ids, a place for each panel within the grid, a description, and no variable that is not defined."""
    dashboard = json.loads((DEPLOY / "grafana/dashboards/hasten.json").read_text())
    panels: list[dict[str, Any]] = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or (panel["description"] and panel["targets"])
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(panels)))
    assert used - {"__rate_interval", "__range", "__all"} <= variables
    assert dashboard["uid"] == "hasten"
