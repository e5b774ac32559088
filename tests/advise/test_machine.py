"""Rates: how they are written, looked up, measured and kept."""

from __future__ import annotations

import json

import pytest
import torch

from hasten.advise import measured_kernels, measured_machine
from hasten.advise.known_machines import known_machine, machine_names
from hasten.advise.machine import KernelRate, MachineLimits, parse_rate
from hasten.advise.measured_kernels import StepRates, largest_cache
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidOption
from hasten.runners.backends.choose import choose_backend


@pytest.mark.parametrize(
    ("text", "unit", "rate"),
    [
        ("4.3TB/s", "B/s", 4.3e12),
        (" 51.2 GB/s", "B/s", 51.2e9),
        ("3350GB/s", "B/s", 3.35e12),
        ("790T", "FLOPS", 7.9e14),
        ("790 TFLOPS", "FLOPS", 7.9e14),
        ("1.5PFLOP/s", "FLOPS", 1.5e15),
        ("1000000", "FLOPS", 1e6),
    ],
)
def test_a_rate_has_a_number_a_prefix_and_its_unit(text, unit, rate):
    assert parse_rate(text, "--x", unit) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("4.3TB", "B/s"),
        ("4.3Tb/s", "B/s"),
        ("4.3TiB/s", "B/s"),
        ("4.3tb/s", "B/s"),
        ("4,3TB/s", "B/s"),
        ("-1TB/s", "B/s"),
        ("1e12B/s", "B/s"),
        ("infB/s", "B/s"),
        ("", "B/s"),
        ("0TB/s", "B/s"),
        ("790TB/s", "FLOPS"),
        ("790 teraflops", "FLOPS"),
        ("790Tflops", "FLOPS"),
        ("nan", "FLOPS"),
        ("9" * 40, "FLOPS"),
        ("999999999P", "FLOPS"),
        ("٣T", "FLOPS"),
    ],
)
def test_a_misspelt_unit_is_one_sentence(text, unit):
    with pytest.raises(InvalidOption, match="--rate is not a rate") as error:
        parse_rate(text, "--rate", unit)
    assert "\n" not in str(error.value)


def test_rates_lie_between_their_points():
    rate = KernelRate(((1, 10.0), (4, 40.0), (64, 80.0)))
    assert [rate.at(rows) for rows in (1, 4, 64, 1000)] == pytest.approx([10, 40, 80, 80])
    assert rate.at(2) == pytest.approx(20)  # half of the way in logarithms
    assert (rate.at(0.5), rate.peak, KernelRate(((1, 7.0),)).at(99)) == (10, 80, 7)


def test_a_form_without_a_rate_takes_that_of_the_nearest():
    rates = {"float32": KernelRate(((1, 1.0),)), "bfloat16": KernelRate(((1, 2.0),))}
    machine = MachineLimits(name="x", bandwidth=1.0, rates=rates)
    names = ("int4", "int8", "int4-weight-only", "fp8", "float16", "float32")
    assert [machine.rate(name).peak for name in names] == [2, 2, 2, 2, 2, 1]
    only = MachineLimits(name="x", bandwidth=1.0, rates={"int8": KernelRate(((1, 3.0),))})
    assert only.rate("float32").peak == 3


def test_the_table_is_in_order():
    """Published peaks double from 16 bits to 8; the nearest name is offered."""
    for name in machine_names():
        machine = known_machine(name.upper())
        peaks = [machine.rates[arithmetic].peak for arithmetic in ("float32", "bfloat16", "int8") if arithmetic in machine.rates]
        assert peaks == sorted(peaks)
        assert 50e9 < machine.bandwidth < 10e12
    assert known_machine("h100").memory == 80 * 10**9
    with pytest.raises(InvalidOption, match="Did you mean 'h100'"):
        known_machine("h10")


def test_the_kernels_of_this_machine_are_measured(monkeypatch):
    """A small measurement of every part; more rows are never slower than one in FLOPs per second by much."""
    monkeypatch.setattr(measured_kernels, "MIN_WEIGHTS_BYTES", 1)
    monkeypatch.setattr(measured_kernels, "ROWS", (1, 64))
    monkeypatch.setattr(measured_kernels, "OUTPUTS", 512)
    monkeypatch.setattr(measured_kernels, "CONTEXT", 64)
    monkeypatch.setattr(measured_kernels, "PROMPT", 64)
    backend = choose_backend(EngineOptions(threads=1))
    rate, bandwidth = measured_kernels.measure_products(backend, torch.float32, cache_bytes=1)
    assert [rows for rows, _ in rate.points] == [1, 64]
    assert rate.points[0][1] == pytest.approx(bandwidth / 2)  # 2 FLOPs for the 4 bytes of a float32 weight
    steps = measured_kernels.measure_steps(backend, torch.float32, 1)
    assert steps.attention > 0
    assert steps.attention_bandwidth > 0
    assert 0 < steps.step_overhead < 10


def test_the_largest_cache_is_read(tmp_path):
    for index, size in enumerate(("32K", "2048K", "?")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size)
    assert largest_cache(tmp_path) == 2 << 20
    assert largest_cache(tmp_path / "none") == 32 << 20


@pytest.fixture
def measurements(monkeypatch, tmp_path) -> list[str]:
    """Replace the measurements, which take seconds; return the list of those that were made."""
    made: list[str] = []

    def products(backend, dtype):
        made.append(str(backend.quantization or dtype))
        return KernelRate(tuple((rows, 10.0 * rows) for rows in measured_kernels.ROWS)), 5.0 + len(made)

    def steps(*_):
        made.append("steps")
        return StepRates(1.0, 2.0, 3.0, 4.0)

    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path))
    monkeypatch.setattr(measured_machine, "measure_products", products)
    monkeypatch.setattr(measured_machine, "measure_steps", steps)
    return made


def test_limits_are_measured_once(measurements, tmp_path):
    first = measured_machine.measured_machine(["bfloat16", "int8"])
    assert measurements == ["torch.bfloat16", "int8", "steps"]
    assert measured_machine.measured_machine(["bfloat16", "int8"]).rates == first.rates
    assert len(measurements) == 3
    more = measured_machine.measured_machine(["bfloat16", "int4"])  # only what is missing
    assert measurements[3:] == ["int4"]
    assert more.rates.keys() == {"bfloat16", "int8", "int4"}
    assert (more.bandwidth, more.attention, more.attention_bandwidth, more.layer_overhead, more.step_overhead) == (9.0, 1, 2, 3, 4)
    assert len(list(tmp_path.iterdir())) == 1
    measured_machine.measured_machine(["bfloat16"], fresh=True)
    assert measurements[4:] == ["torch.bfloat16", "steps"]


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "[]",
        "{",
        "[" * 10_000,
        '{"step": {"attention": 0, "attention_bandwidth": 1, "layer_overhead": 0, "step_overhead": 0}}',
        '{"bfloat16": {"flops": [], "bandwidth": 1}}',
        '{"bfloat16": {"flops": [1, 2, 3, 4, 5, 6, 7, 8, NaN], "bandwidth": 1}}',
        '{"bfloat16": {"flops": [1, 2, 3, 4, 5, 6, 7, 8, "9"], "bandwidth": true}}',
        '{"bfloat16": null, "step": 3}',
    ],
)
def test_a_damaged_file_is_measured_again(measurements, tmp_path, damage):
    measured_machine.measured_machine(["bfloat16"])
    (file,) = tmp_path.iterdir()
    content = json.loads(file.read_text())
    file.write_text(damage)
    measured_machine.measured_machine(["bfloat16"])
    assert measurements == ["torch.bfloat16", "steps"] * 2
    assert json.loads(file.read_text()).keys() == content.keys()
