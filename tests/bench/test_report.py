"""Spread and percentiles against their definitions."""

import json
import re

import pytest

from hasten.bench.report import lines, percentiles, spread
from hasten.bench.provenance import commit, versions


@pytest.mark.parametrize("count", [1, 2, 10, 99, 100, 101, 250])
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(count):
    values = [float((7 * i) % count) for i in range(count)]
    found = percentiles(values)
    for p in (50, 90, 99):
        expected = min(value for value in values if sum(other <= value for other in values) * 100 >= p * count)
        assert found[f"p{p}"] == expected


def test_no_gaps_are_no_percentiles():
    assert percentiles([]) is None
    rates = dict.fromkeys(("output_tokens_per_second", "total_tokens_per_second", "requests_per_second"), spread([1.0]))
    rows = lines({**rates, "ttft": percentiles([0.5]), "itl": None, "e2e": percentiles([0.5])})
    assert [row[0] for row in rows if "ms" in row[0]] == ["TTFT ms", "E2E ms"]


def test_spread_is_median_and_range():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}


def test_the_origin_of_a_measurement_is_plain_data():
    found = versions()
    assert json.loads(json.dumps(found)) == found
    assert {"hasten", "python", "torch", "transformers"} <= set(found)
    assert commit() is None or re.fullmatch(r"[0-9a-f]{12}\+?", commit())
