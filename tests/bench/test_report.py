"""Spread and percentiles, compared with their definitions."""

import json
import re

import pytest

from hasten.bench.provenance import commit, versions
from hasten.bench.report import percentiles, spread, summary_rows


@pytest.mark.parametrize("count", [1, 2, 10, 99, 100, 101, 250])
def test_a_percentile_is_the_smallest_value_that_p_percent_do_not_exceed(count):
    values = [float((7 * i) % count) for i in range(count)]
    result = percentiles(values)
    for p in (50, 90, 99):
        expected = min(value for value in values if sum(other <= value for other in values) * 100 >= p * count)
        assert result[f"p{p}"] == expected


def test_no_values_have_no_percentiles():
    assert percentiles([]) is None
    rates = dict.fromkeys(("output_tokens_per_second", "total_tokens_per_second", "requests_per_second"), spread([1.0]))
    rows = summary_rows({**rates, "ttft": percentiles([0.5]), "itl": None, "e2e": percentiles([0.5])})
    assert [row[0] for row in rows] == ["output tokens/s", "total tokens/s", "requests/s", "TTFT ms", "E2E ms"]
    assert rows[0] == ("output tokens/s", "1.0", "1.0 to 1.0")
    assert rows[3] == ("TTFT ms", "500.0", "p90 500.0, p99 500.0")


def test_spread_is_median_and_range():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}


def test_versions_and_commit_are_plain_data():
    result = versions()
    assert json.loads(json.dumps(result)) == result
    assert {"hasten", "python", "torch", "transformers"} <= set(result)
    assert commit() is None or re.fullmatch(r"[0-9a-f]{12}\+?", commit())
