"""Predicted times against rooflines that are worked out by hand."""

from __future__ import annotations

import random

import pytest

from hasten.advise.count import count, windows
from hasten.advise.explanation import Speculation, explain
from hasten.advise.machine import KernelRate, MachineLimits
from hasten.advise.model_shape import Precision, read_shape
from hasten.advise.predict import expected_tokens, predict_step, roofline_limit, turning_batch
from hasten.advise.work import Lengths, decode, prefill
from hasten.core.errors import InvalidOption

MACHINE = MachineLimits(name="test", bandwidth=1e9, rates={"bfloat16": KernelRate(((1, 1e11),))}, memory=10**9)


@pytest.fixture(scope="module")
def shape():
    return read_shape("demo", Precision(), is_here=False)


def test_a_step_takes_the_longer_of_bytes_and_arithmetic_of_each_module(shape):
    for work in (prefill(1, 100), decode(1, 50), decode(300, 50)):
        modules = {module.name: module for module in count(shape.spec, work, shape.storage).modules}
        time = predict_step(shape, work, MACHINE)
        for module in time.modules:
            memory, arithmetic = modules[module.name].bytes / 1e9, modules[module.name].flops / 1e11
            assert module.seconds == pytest.approx(max(memory, arithmetic))
            assert module.limit == ("memory" if memory >= arithmetic else "arithmetic")
        assert time.seconds == pytest.approx(sum(module.seconds for module in time.modules))


def test_overhead_is_named_where_it_is_the_largest(shape):
    machine = MachineLimits(name="x", bandwidth=1e12, rates=MACHINE.rates, layer_overhead=0.01, step_overhead=0.5)
    time = predict_step(shape, decode(1, 5), machine)
    assert (time.limit, time.overhead) == ("overhead", pytest.approx(0.5 + 8 * 0.01))
    assert predict_step(shape, decode(1, 5), MACHINE).limit == "memory"
    assert predict_step(shape, prefill(1, 512), MACHINE).limit == "arithmetic"


def test_measured_rates_include_activations_and_depend_on_rows(shape):
    rates = {"bfloat16": KernelRate(((1, 1e9), (100, 5e10)))}
    machine = MachineLimits(name="x", bandwidth=1e15, rates=rates, attention=1e9, attention_bandwidth=1e6, is_measured=True)
    work = prefill(1, 100)
    modules = {module.name: module for module in count(shape.spec, work, shape.storage).modules}
    times = {module.name: module.seconds for module in predict_step(shape, work, machine).modules}
    assert times["feed-forward up"] == pytest.approx(modules["feed-forward up"].flops / 5e10)
    assert times["vocabulary"] == pytest.approx(modules["vocabulary"].flops / 1e9)  # one row
    scores = modules["scores"]
    assert times["scores"] == pytest.approx(max(scores.kv_read / 1e6, scores.flops / 1e9))


def test_the_turning_batch_is_the_first_one(shape):
    context = 16
    found = turning_batch(shape, context, MACHINE)
    limits = [roofline_limit(shape, decode(batch, context, windows(shape.spec)), MACHINE) for batch in range(1, found + 2)]
    assert limits[found - 1 :] == ["arithmetic", "arithmetic"]
    assert set(limits[: found - 1]) == {"memory"}
    slow = MachineLimits(name="x", bandwidth=1e3, rates=MACHINE.rates)
    assert turning_batch(shape, 500, slow) is None


def test_expected_tokens_are_those_of_a_simulation():
    draw = random.Random(0)
    for tokens, acceptance in ((1, 0.5), (4, 0.8), (7, 0.3)):
        total = 0
        for _ in range(40_000):
            accepted = 0
            while accepted < tokens and draw.random() < acceptance:
                accepted += 1
            total += 1 + accepted
        assert expected_tokens(tokens, acceptance) == pytest.approx(total / 40_000, rel=0.02)
    assert (expected_tokens(4, 1.0), expected_tokens(4, 0.0)) == (5, 1)


def test_an_explanation_adds_up(shape):
    lengths = Lengths(batch=2, prompt=100, output=50)
    plain = explain(shape, lengths, MACHINE)
    assert plain.request_seconds == pytest.approx(plain.ttft + 49 * plain.itl)
    assert plain.tokens_per_second == pytest.approx(2 / plain.itl)
    assert plain.decode.work == decode(2, 124)
    assert plain.budget.memory == (10**9 - shape.storage.weight_bytes) // 4
    drafted = explain(shape, lengths, MACHINE, speculation=Speculation(tokens=3, acceptance=0.5))
    assert drafted.tokens_per_step == 1.875
    assert drafted.decode.work.tokens == drafted.decode.work.logit_rows == 8
    assert plain.itl / 1.9 < drafted.itl < plain.itl  # memory is the limit, so rows are nearly free
    uncached = explain(shape, lengths, MACHINE, cache=False)
    assert uncached.decode.count.total.multiply_adds > 50 * plain.decode.count.total.multiply_adds
    saved = 1 - plain.request.count.total.multiply_adds / uncached.request.count.total.multiply_adds
    assert plain.cache_saving == uncached.cache_saving == saved


@pytest.mark.parametrize("values", [{"tokens": 0}, {"tokens": 4, "acceptance": 1.5}, {"tokens": 4, "acceptance": float("nan")}])
def test_impossible_speculation_is_refused(values):
    with pytest.raises(InvalidOption):
        Speculation(**values)


def test_requests_longer_than_the_context_are_refused(shape):
    with pytest.raises(InvalidOption, match="longer than the model's context"):
        explain(shape, Lengths(prompt=shape.spec.max_positions, output=1), MACHINE)
