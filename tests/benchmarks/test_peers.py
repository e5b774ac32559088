"""The comparison with other engines: a goal's ratio, and the conditions that void it."""

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def importable():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def goals(importable):
    return importlib.import_module("engines.goals")


def row(engine, rates, weights="int8", work="decode-1", kv=None):
    ordered = sorted(rates)
    return {
        "engine": engine,
        "weights": weights,
        "kv": kv,
        "work": work,
        "seconds": [48 / rate for rate in rates],
        "tokens_per_second": {"median": ordered[len(ordered) // 2], "min": ordered[0], "max": ordered[-1]},
        "share_of_limit": 0.5,
    }


PEERS = {"torch.compile": 17.0, "llama.cpp": 20.0, "OpenVINO": 25.0, "OpenVINO GenAI": 24.0, "CTranslate2": 14.0}


def decode_int8(goals, rows):
    return next(result for result in goals.results(rows) if result["goal"] == "decode, batch 1, int8")


def complete_rows():
    """Return rows with one slow repeat each, so that mean and median differ, and rows of other goals."""
    rows = [row(engine, [rate, rate, rate / 4]) for engine, rate in PEERS.items()]
    others = [row("llama.cpp", [99.0] * 3, weights="int4"), row("llama.cpp", [99.0] * 3, work="decode-8")]
    return [*rows, *others, row("hasten", [50.0, 50.0, 5.0])]


def test_the_ratio_compares_medians_with_the_best_engine_of_the_same_weights(goals):
    result = decode_int8(goals, complete_rows())
    assert "void" not in result
    assert result["peer"]["engine"] == "OpenVINO"
    assert result["ratio"] == pytest.approx(2.0)
    assert result["met"]


@pytest.mark.parametrize("missing", [*PEERS, "hasten"])
def test_a_missing_engine_voids_the_goal_and_is_named(goals, missing):
    result = decode_int8(
        goals, [r for r in complete_rows() if (r["engine"], r["weights"], r["work"]) != (missing, "int8", "decode-1")]
    )
    assert "ratio" not in result
    assert len(result["void"]) == 1 and result["void"][0].startswith(missing)


def test_too_few_repeats_void_the_goal(goals):
    rows = complete_rows()
    rows[0] = row("torch.compile", [17.0, 17.0])
    assert decode_int8(goals, rows)["void"] == ["torch.compile int8 (2 of 3 repeats)"]


def test_an_optional_engine_may_be_missing_but_counts_if_present(goals):
    result = decode_int8(goals, [*complete_rows(), row("onnxruntime-genai", [100.0] * 3)])
    assert (result["peer"]["engine"], result["ratio"], result["met"]) == ("onnxruntime-genai", 0.5, False)


def test_the_bytes_of_a_token_follow_from_the_model_shape(importable):
    """Qwen3-0.6B has 440 million weights in the layers and 156 million in the lm_head."""
    shapes, workloads = (importlib.import_module(f"engines.{name}") for name in ("shapes", "workloads"))
    costs = shapes.Costs.of(shapes.SHAPES["qwen3-0.6b"])
    assert (costs.layer_weights, costs.head_weights) == (440_401_920, 155_582_464)
    one = workloads.workloads(40_960, quick=False)["decode-1"]
    in_int8 = one.demand(costs, "int8", None, seed=0)
    weights, cache = 595_984_384, 28 * 2 * 8 * 128 * (32 + 24)  # one byte per key and value element
    in_bf16 = one.demand(costs, "bf16", None, seed=0)
    assert in_bf16.bytes / one.steps == 2 * (weights + cache)
    assert in_int8.bytes / one.steps == weights + cache
    assert in_int8.seconds(1e12, 33e9) == pytest.approx(one.steps * (weights + cache) / 33e9)
