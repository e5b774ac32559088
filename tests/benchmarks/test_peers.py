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
        "label": weights,
        "lm_head": weights,
        "activations": "int8, scale per row",
        "kv": kv,
        "work": work,
        "words": work,
        "seconds": [48 / rate for rate in rates],
        "tokens_per_second": {"median": ordered[len(ordered) // 2], "min": ordered[0], "max": ordered[-1]},
        "share_of_limit": 0.5,
    }


PEERS = {"torch.compile": 17.0, "llama.cpp": 20.0, "OpenVINO": 25.0, "OpenVINO GenAI": 24.0, "CTranslate2": 14.0}


def find_result(goals, rows, name, kernels="avx512"):
    return next(result for result in goals.results(rows, kernels) if result["goal"] == name)


def decode_int8(goals, rows):
    return find_result(goals, rows, "decode, batch 1, int8")


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


def test_a_quantised_file_is_read_as_it_is(importable):
    """A Q4_K_M file that llama.cpp made of Qwen3-0.6B has 390,491,136 bytes of matrices; GPTQ and FP8 leave the lm_head in bf16."""
    shapes, workloads = (importlib.import_module(f"engines.{name}") for name in ("shapes", "workloads"))
    costs = shapes.Costs.of(shapes.SHAPES["qwen3-0.6b"])
    one = workloads.workloads(40_960, quick=False)["prefill-512"]
    assert one.demand(costs, "q4_k_m", None, seed=0, lm_head="q6_k").bytes == pytest.approx(390_491_136)
    assert one.demand(costs, "fp8", None, seed=0, lm_head="bf16").bytes == 440_401_920 + 2 * 155_582_464
    assert one.demand(costs, "int4-g128", None, seed=0, lm_head="bf16").bytes == 440_401_920 * 33 / 64 + 2 * 155_582_464


INT4_PEERS = {"llama.cpp": 20.0, "OpenVINO": 25.0, "OpenVINO GenAI": 24.0}


@pytest.mark.parametrize("activations", ["float", "int8"])
def test_a_goal_of_one_variant_ignores_the_other_variants_of_hasten(goals, activations):
    variant = f"hasten {activations}, quantised lm_head"
    rates = INT4_PEERS | {"hasten float": 90.0, "hasten int8": 95.0, variant: 40.0}
    others = [row("hasten float, quantised lm_head", [200.0], "int4-g128")] if activations == "int8" else []
    rows = [*(row(engine, [rate] * 3, "int4-g128") for engine, rate in rates.items()), *others]
    result = find_result(goals, rows, f"decode, batch 1, int4-g128, {activations} activations")
    assert (result["ratio"], result["peer"]["engine"], result["met"]) == (pytest.approx(1.6), "OpenVINO", True)


def test_fp8_is_compared_with_bf16_of_its_own_phase(goals):
    name = "decode, batch 1, FP8 beside hasten's bf16"
    rows = [row("hasten float", [24.0] * 3, "fp8"), row("hasten", [99.0] * 3, "bf16"), row("llama.cpp", [99.0] * 3, "bf16")]
    assert find_result(goals, rows, name)["void"] == ["hasten bf16 fp8"]
    rows.append(row("hasten bf16", [20.0] * 3, "fp8"))
    results = [find_result(goals, rows, name, kernels) for kernels in ("amx", "avx512", "avxvnni", "avx2")]
    assert [(result["at_least"], result["met"]) for result in results] == [(1.3, False)] * 2 + [(1.1, True)] * 2


def test_only_goals_of_the_measured_weights_are_reported(goals):
    assert {result["goal"] for result in goals.results([], "avx2", ["fp8"])} == {"decode, batch 1, FP8 beside hasten's bf16"}


def test_every_goal_has_an_engine_to_compare_and_every_entry_a_phase(goals):
    registry, shapes = (importlib.import_module(f"engines.{name}") for name in ("registry", "shapes"))
    names = {spec.name for spec in registry.ENGINES}
    weights = {phase.weights for phase in registry.PHASES}
    assert len(names) == len(registry.ENGINES)
    for goal in registry.GOALS:
        spec = next(spec for spec in registry.ENGINES if spec.name == goal.engine)
        assert goals.expected(goal) and {goal.engine, *goal.others} <= names
        assert all(spec.runs(w, goal.kv, goal.workload) for w in ([goal.weights] if goal.weights else ("bf16", "int8", "int4")))
    for spec in registry.ENGINES:
        assert spec.entries.keys() <= weights
        assert all({entry.weights, entry.lm_head} <= shapes.BYTES.keys() for entry in spec.entries.values())


def test_the_limit_of_products_follows_from_the_activations(importable):
    """A product of 16-bit integers takes two of 8 bits."""
    limits = importlib.import_module("engines.limits")
    measured = {"int8": 8.0, "bf16": 3.0, "fp32": 1.0}
    activations = ("int8, groups of 32", "int16, groups of 128", "bf16", "float32")
    assert [limits.ops_per_second(measured, name) for name in activations] == [8.0, 4.0, 3.0, 3.0]


def test_hasten_and_llama_cpp_read_the_same_q4_k_m_file(importable):
    """llama.cpp converts, whichever of them is loaded first."""
    registry = importlib.import_module("engines.registry")
    specs = [spec for spec in registry.ENGINES if "q4_k_m" in spec.entries]
    assert [spec.name for spec in specs] == ["hasten float", "hasten int8", "llama.cpp"]
    (converter,) = {spec.converter("q4_k_m") for spec in specs}
    assert converter.program == "llama_cpp"


def test_the_table_names_weights_lm_head_and_activations_of_each_engine(importable):
    table = importlib.import_module("engines.table")
    figures = row("llama.cpp", [20.0] * 3, "int4-g128") | {
        "label": "Q4_0, groups of 32",
        "lm_head": "int4",
        "activations": "int8, groups of 32",
        "all_tokens_per_second": None,
        "first_tokens_as_transformers": None,
        "peak_memory": 1e9,
    }
    result = {
        "model": "demo",
        "date": "",
        "commit": "",
        "threads": 2,
        "repeats": 3,
        "quick": False,
        "versions": {},
        "goals": [],
        "missing": [],
        "rows": [figures],
        "hardware": {"cpu": ""},
        "limits": {"bytes_per_second": 1.0, "int8": 1.0, "bf16": 1.0, "fp32": 1.0, "units": {"int8": "", "bf16": ""}},
    }
    assert "| decode-1 | Q4_0, groups of 32 | int4 | int8, groups of 32 | llama.cpp | 20.0 " in table.markdown(result)
