"""The sizes that a target asks for: within it, and one step less pruned is beyond it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from hasten.checkpoints.hub import resolve
from hasten.checkpoints.reader import Checkpoint
from hasten.compress.prune.options import PARTS, PruneOptions
from hasten.compress.prune.shape import Shape, num_parameters
from hasten.compress.prune.target import MAX_RATIO, find_target
from hasten.compress.prune.target_shape import shape_for_ratio
from hasten.core.errors import InvalidOption
from hasten.models.load import load_decoder, read_spec
from hasten.models.spec import DecoderSpec
from hasten.ops.torch.backend import TorchOps

PART_SETS = [("heads", "neurons"), ("neurons",), ("width",), ("layers",), PARTS]


@pytest.fixture(scope="module")
def spec() -> DecoderSpec:
    return read_spec(Checkpoint.open(resolve("demo", quiet=True)))


def parameters(spec: DecoderSpec, shape: Shape) -> int:
    return num_parameters(shape.apply(spec))


def no_latency(shape: Shape) -> float:
    raise AssertionError(shape)


def test_the_count_is_that_of_the_decoder(tiny: Callable[[str], Path]) -> None:
    for name in ("llama-gqa", "llama-mha-tied", "llama-mqa-bias", "gpt2", "gpt2-untied-gelu", "qwen3-gqa"):
        loaded = load_decoder(tiny(name), dtype="float32", ops=TorchOps())
        counted = sum({id(weight): weight.numel() for weight in loaded.decoder.parameters()}.values())
        assert num_parameters(loaded.spec) == counted, name


@pytest.mark.parametrize("parts", PART_SETS, ids="+".join)
@pytest.mark.parametrize("share", [0.9, 0.75, 0.5])
def test_parameters_are_within_the_target_and_a_step_more_is_not(spec: DecoderSpec, parts: tuple[str, ...], share: float) -> None:
    most = int(share * num_parameters(spec))
    target = find_target(spec, PruneOptions(parts=parts, target_params=most), no_latency)
    assert parameters(spec, target.shape) <= most
    # All shapes of the ratio, in steps of 0.1 %: the next larger one has more parameters.
    shapes = [shape_for_ratio(spec, parts, step / 1000) for step in range(1, 990)]
    assert all(parameters(spec, shape) > most for shape in shapes if shape_sizes(shape) > shape_sizes(target.shape))
    if "neurons" in parts:
        sizes = {shape_for_ratio(spec, ("neurons",), step / 1000).intermediate_size for step in range(1, 990)}
        larger = [dataclasses.replace(target.shape, intermediate_size=size) for size in sizes | {768}]
        more = [shape for shape in larger if shape.intermediate_size > target.shape.intermediate_size]
        assert all(parameters(spec, shape) > most for shape in more)


def shape_sizes(shape: Shape) -> tuple[int, ...]:
    """Return the sizes by which a uniform shape is larger than another: none of the uniform ones crosses."""
    return (shape.num_layers, shape.hidden_size, shape.num_heads, shape.intermediate_size)


def test_other_parts_than_the_chosen_ones_stay(spec: DecoderSpec) -> None:
    target = find_target(spec, PruneOptions(parts=("neurons",), target_params=6_000_000), no_latency).shape
    assert dataclasses.replace(target, intermediate_size=768) == Shape.of(spec)


@pytest.mark.parametrize("limit", [0.25, 0.5, 0.8, 0.97])
def test_the_latency_is_within_the_target_after_few_measurements(spec: DecoderSpec, limit: float) -> None:
    measured: dict[Shape, float] = {}

    def latency(shape: Shape) -> float:
        assert shape not in measured, "a shape is measured once"
        measured[shape] = 1e-6 * parameters(spec, shape)
        return measured[shape]

    most = limit * 1e-6 * num_parameters(spec)
    found = find_target(spec, PruneOptions(parts=PARTS, target_latency=most), latency)
    assert measured[found.shape] <= most and len(measured) <= 8
    # The shape is the largest of 33: the one of the step before is beyond the target.
    before = [shape_for_ratio(spec, PARTS, step / 33 * MAX_RATIO) for step in range(1, 34)]
    larger = [shape for shape in before if parameters(spec, shape) > parameters(spec, found.shape)]
    assert all(1e-6 * parameters(spec, shape) > most for shape in larger)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_params": 10**9}, "to below 8,392,960"),
        ({"target_params": 8_392_960}, "to below 8,392,960"),
        ({"target_params": 1000}, "target_params: got 1,000"),
        ({"target_latency": 100.0}, "to below 8.39"),
        ({"target_latency": 0.001}, "target_latency"),
    ],
)
def test_targets_out_of_reach_are_refused(spec: DecoderSpec, options: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidOption, match="pruning these parts does not lead to") as raised:
        find_target(spec, PruneOptions(**options), lambda shape: 1e-6 * parameters(spec, shape))  # type: ignore[arg-type]
    assert message in str(raised.value)


def test_no_ratio_removes_nothing(spec: DecoderSpec) -> None:
    assert find_target(spec, PruneOptions(ratio=0), no_latency).shape == Shape.of(spec)
