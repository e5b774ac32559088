"""The sizes between two shapes: each can be cut to the next, and all rounds remove about the same share."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import pytest

from hasten.checkpoints.hub import resolve
from hasten.checkpoints.reader import Checkpoint
from hasten.compress.prune.options import PARTS, PruneOptions
from hasten.compress.prune.rounds import can_cut, removed_shares, round_shapes, rounds_needed
from hasten.compress.prune.shape import Shape, num_parameters
from hasten.compress.prune.structured import check_target
from hasten.compress.prune.target import find_target
from hasten.models.load import read_spec
from hasten.models.spec import DecoderSpec


@pytest.fixture(scope="module")
def demo() -> DecoderSpec:
    return read_spec(Checkpoint.open(resolve("demo", quiet=True)))


def large(spec: DecoderSpec) -> DecoderSpec:
    """Return the demo with the sizes of a model of 8 billion parameters, which have fine steps."""
    layer = spec.layers[0]
    attention = dataclasses.replace(layer.attention, num_heads=32, num_kv_heads=8)
    layer = dataclasses.replace(layer, attention=attention, mlp=dataclasses.replace(layer.mlp, intermediate_size=14336))
    return dataclasses.replace(spec, hidden_size=4096, layers=(layer,) * 32)


@pytest.mark.parametrize("parts", [("heads", "neurons"), ("width",), ("layers",), PARTS], ids="+".join)
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_every_shape_can_be_cut_to_the_next(demo: DecoderSpec, parts: tuple[str, ...], rounds: int) -> None:
    for spec in (demo, large(demo)):
        target = find_target(spec, PruneOptions(parts=parts, target_params=int(0.6 * num_parameters(spec))), lambda shape: 0.0)
        shapes = round_shapes(spec, parts, target.shape, rounds)
        assert len(shapes) == rounds and shapes[-1] == target.shape
        for before, after in itertools.pairwise([Shape.of(spec), *shapes]):
            check_target(before, after)  # raises where pruning would
            assert can_cut(before, after)
        counts = [num_parameters(spec)] + [num_parameters(shape.apply(spec)) for shape in shapes]
        shares = removed_shares(spec, shapes)
        assert shares == pytest.approx([1 - after / before for before, after in itertools.pairwise(counts)])


def test_rounds_of_fine_steps_remove_equal_shares(demo: DecoderSpec) -> None:
    spec = large(demo)
    target = find_target(spec, PruneOptions(parts=("neurons", "width"), target_params=4_000_000_000), lambda shape: 0.0)
    needed = rounds_needed(spec, target.shape)
    share = num_parameters(target.shape.apply(spec)) / num_parameters(spec)
    assert 0.9**needed <= share < 0.9 ** (needed - 1)
    expected = 1 - math.exp(math.log(share) / needed)
    assert removed_shares(spec, round_shapes(spec, ("neurons", "width"), target.shape, needed)) == pytest.approx(
        [expected] * needed, abs=0.02
    )


def test_shapes_that_cross_are_left_out(demo: DecoderSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """A family might offer fewer layers at one ratio and fewer neurons at the next."""
    shape = Shape.of(demo)

    def crossing(spec: DecoderSpec, parts: Sequence[str], ratio: float) -> Shape:
        step = round(ratio * 200)
        if step % 2:
            return dataclasses.replace(shape, num_layers=max(2, 8 - step // 20))
        return dataclasses.replace(shape, intermediate_size=max(128, 768 - 4 * step))

    monkeypatch.setattr("hasten.compress.prune.rounds.shape_for_ratio", crossing)
    target = dataclasses.replace(shape, num_layers=2, intermediate_size=128)
    shapes = [shape, *round_shapes(demo, PARTS, target, 6)]
    assert all(can_cut(before, after) for before, after in itertools.pairwise(shapes)) and len(set(shapes)) > 3


def test_a_group_that_grows_cannot_be_cut() -> None:
    shape = Shape(num_layers=2, hidden_size=64, num_heads=4, num_kv_heads=2, intermediate_size=96)
    assert can_cut(shape, dataclasses.replace(shape, num_heads=2))
    assert can_cut(shape, dataclasses.replace(shape, num_heads=2, num_kv_heads=1))
    assert not can_cut(shape, dataclasses.replace(shape, num_kv_heads=1))  # four queries of one key
    assert not can_cut(shape, dataclasses.replace(shape, hidden_size=65))
