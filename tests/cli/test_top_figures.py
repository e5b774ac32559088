"""The figures of ``hasten top`` equal those by hand from two scrapes; quantiles are Prometheus's."""

from __future__ import annotations

import random

import pytest

from hasten.cli.top_figures import figures, quantile
from hasten.cli.top_scrape import Scrape
from hasten.cli.top_table import NONE, ROWS, cells, server_line

INF = float("inf")


def text(model: str = "m", *, scale: int = 1, buckets: tuple[int, ...] = (2, 6, 8, 8), extra: str = "", cpu: float = 1.0) -> str:
    labels = f'model_name="{model}",engine="0"'
    lines = [
        'hasten_build_info{version="1.2"} 1',
        f"hasten_engine_up{{{labels}}} 1",
        f"vllm:num_requests_running{{{labels}}} 3",
        f"vllm:num_requests_waiting{{{labels}}} 2",
        f"vllm:kv_cache_usage_perc{{{labels}}} 0.25",
        f"vllm:prompt_tokens_total{{{labels}}} {100 * scale}",
        f"vllm:generation_tokens_total{{{labels}}} {40 * scale}",
        f'vllm:request_success_total{{{labels},finished_reason="stop"}} {2 * scale}',
        f'vllm:request_success_total{{{labels},finished_reason="length"}} {scale}',
        f"vllm:prefix_cache_queries_total{{{labels}}} {100 * scale}",
        f"vllm:prefix_cache_hits_total{{{labels}}} {25 * scale}",
        f"vllm:num_preemptions_total{{{labels}}} {scale}",
        f'hasten_requests_rejected_total{{reason="rate_limit"}} {5 * scale}',
        'hasten_requests_rejected_total{reason="timeout"} 0',
        f'hasten_process_cpu_seconds_total{{process="frontend",model_name="",engine=""}} {cpu}',
        'hasten_process_resident_bytes{process="frontend",model_name="",engine=""} 5e8',
        "hasten_http_requests_in_flight 1",
        "hasten_http_disconnects_total 4",
        f'hasten_http_requests_total{{route="/a",status="200"}} {7 * scale}',
    ]
    for bound, count in zip(("0.1", "0.2", "0.4", "+Inf"), buckets, strict=True):
        lines.append(f'vllm:time_to_first_token_seconds_bucket{{{labels},le="{bound}"}} {count}')
    return "\n".join([*lines, extra]) + "\n"


def test_figures_between_two_scrapes() -> None:
    first = Scrape.parse(text(), 10.0)
    second = Scrape.parse(text(scale=3, buckets=(2, 6, 12, 12), cpu=3.0), 14.0)
    found = figures(first, second)
    (model,) = found["models"]
    assert (model["model"], model["up"], model["running"], model["waiting"], model["kv_usage"]) == ("m", True, 3, 2, 0.25)
    assert (model["prompt_tokens_per_second"], model["output_tokens_per_second"], model["requests_per_second"]) == (50, 20, 1.5)
    assert (model["prefix_cache_hit_rate"], model["preemptions"]) == (0.25, 2)
    assert model["ttft_p50"] == pytest.approx(0.3)  # four observations between 0.2 and 0.4
    assert [model[key] for key in ("itl_p50", "e2e_p95", "acceptance", "result_cache_hit_rate", "cpu", "resident_bytes")] == [
        None
    ] * 6
    assert found["server"] == {
        "version": "1.2",
        "in_flight": 1,
        "http_requests_per_second": 3.5,
        "rejected": {"rate_limit": 15},
        "rejected_per_second": 2.5,
        "disconnects": 4,
        "cpu": 0.5,
        "resident_bytes": 5e8,
    }


def test_figures_since_the_start() -> None:
    """Percentiles and shares are those of the later scrape alone; rates are between the two."""
    (model,) = figures(Scrape.parse(text(), 10.0), Scrape.parse(text(scale=3), 14.0), since_start=True)["models"]
    assert model["ttft_p50"] == pytest.approx(0.15) and model["preemptions"] == 3
    assert model["output_tokens_per_second"] == 20


def test_a_restarted_engine_counts_from_zero() -> None:
    (model,) = figures(Scrape.parse(text(scale=5, buckets=(9, 9, 9, 9)), 0.0), Scrape.parse(text(), 2.0))["models"]
    assert (model["output_tokens_per_second"], model["preemptions"]) == (20, 1)
    assert model["ttft_p50"] == pytest.approx(0.15)


def test_caches_and_drafts_are_shown_where_there_are_any() -> None:
    labels = 'model_name="m",engine="0"'
    extra = "\n".join(
        f"{name}_total{{{labels}}} {value}"
        for name, value in {
            "hasten_result_cache_hits": 3,
            "hasten_result_cache_misses": 5,
            "hasten_result_cache_shared": 1,
            "vllm:spec_decode_num_accepted_tokens": 30,
            "vllm:spec_decode_num_draft_tokens": 40,
        }.items()
    )
    extra += f'\nhasten_process_cpu_seconds_total{{process="engine",{labels}}} 2\n'
    first, second = Scrape.parse(text(extra=extra.replace("} 2", "} 1")), 1.0), Scrape.parse(text(extra=extra), 3.0)
    (model,) = figures(first, second, since_start=True)["models"]
    assert (model["result_cache_hit_rate"], model["acceptance"], model["cpu"]) == (0.5, 0.75, 0.5)


def test_models_and_what_is_missing() -> None:
    """A model that is loaded between two scrapes has no rates yet; one that does not answer has nothing."""
    later = text() + 'hasten_engine_up{model_name="b",engine="0"} 0\n'
    one, two = figures(Scrape.parse('hasten_build_info{version="1"} 1\n', 0.0), Scrape.parse(later, 1.0))["models"]
    assert (one["model"], one["up"], two["model"], two["up"]) == ("b", False, "m", True)
    assert {value for key, value in one.items() if key not in ("model", "up")} == {None}
    assert two["output_tokens_per_second"] is None and two["running"] == 3
    assert len(cells(one)) == len(ROWS) and set("".join(cells(one))) <= set(f"{NONE} /")


@pytest.mark.parametrize("q", [0.05, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_quantile_lies_within_the_bucket_of_the_value_of_its_rank(q: float, seed: int) -> None:
    rng = random.Random(seed)
    bounds = sorted(rng.sample(range(1, 60), 8))
    values = sorted(rng.uniform(0, 50) for _ in range(200))
    buckets = [(float(bound), float(sum(value <= bound for value in values))) for bound in bounds] + [(INF, 200.0)]
    exact = values[max(0, int(q * 200) - 1)]
    found = quantile(q, buckets)
    if exact > bounds[-1]:
        assert found == bounds[-1]
    else:
        high = next(bound for bound in bounds if exact <= bound)
        assert found is not None and max([0, *(bound for bound in bounds if bound < high)]) <= found <= high


@pytest.mark.parametrize(
    ("q", "buckets", "expected"),
    [  # an exhaustive test compares with a real Prometheus
        (0.5, [(0.1, 2.0), (0.2, 6.0), (0.4, 8.0), (INF, 8.0)], 0.15),
        (0.95, [(0.1, 2.0), (0.2, 6.0), (0.4, 8.0), (INF, 8.0)], 0.36),
        (0.5, [(1.0, 0.0), (2.0, 0.0), (INF, 3.0)], 2.0),
        (0.25, [(1.0, 4.0), (INF, 4.0)], 0.25),
        (0.5, [(1.0, 0.0), (INF, 0.0)], None),
        (0.5, [], None),
    ],
)
def test_quantiles_are_those_of_prometheus(q: float, buckets: list[tuple[float, float]], expected: float | None) -> None:
    assert quantile(q, buckets) == (expected if expected is None else pytest.approx(expected))


def test_names_of_the_server_cannot_move_the_cursor() -> None:
    hostile = text().replace('reason="rate_limit"', 'reason="\x1b[2J\x07"')
    scrape = Scrape.parse(hostile, 1.0)
    line = server_line(figures(scrape, scrape)["server"])
    assert "\x1b" not in line and "\x07" not in line and "refused" in line
