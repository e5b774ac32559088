"""``round_shapes``: the sizes between two shapes that a gradual pruning passes."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

from hasten.compress.prune.shape import Shape, num_parameters
from hasten.compress.prune.target_shape import shape_for_ratio
from hasten.core.errors import InvalidOption
from hasten.models.spec import DecoderSpec

MOST_REMOVED = 0.1  # share of the parameters that a round may remove without a warning
CANDIDATES = 200  # ratios whose shapes are considered


def round_shapes(spec: DecoderSpec, parts: Sequence[str], target: Shape, rounds: int) -> list[Shape]:
    """Return the shape after each round.

    All rounds remove about the same share of the parameters that are left. The last one is ``target``. A round keeps the sizes of
    the one before it where no size lies between.
    """
    before, after = num_parameters(spec), num_parameters(target.apply(spec))
    shapes = [Shape.of(spec)]
    candidates = [*shapes, *(_candidates(spec, parts, target) if rounds > 1 else [])]
    sizes = {shape: math.log(num_parameters(shape.apply(spec))) for shape in candidates}
    for number in range(1, rounds):
        wanted = math.log(before) + (math.log(after) - math.log(before)) * number / rounds
        between = [shape for shape in sizes if can_cut(shapes[-1], shape)]
        shapes.append(min(between, key=lambda shape: abs(sizes[shape] - wanted)))
    return [*shapes[1:], target]


def removed_shares(spec: DecoderSpec, shapes: Sequence[Shape]) -> list[float]:
    """Return the share of the parameters that each round removes."""
    counts = [num_parameters(spec), *(num_parameters(shape.apply(spec)) for shape in shapes)]
    return [1 - after / before for before, after in itertools.pairwise(counts)]


def rounds_needed(spec: DecoderSpec, target: Shape) -> int:
    """Return how many equal rounds of at most ``MOST_REMOVED`` lead to the target."""
    share = num_parameters(target.apply(spec)) / num_parameters(spec)
    return max(1, math.ceil(math.log(share) / math.log(1 - MOST_REMOVED) - 1e-9))


def can_cut(shape: Shape, target: Shape) -> bool:
    """Return whether a model of ``shape`` can become one of ``target``.

    No size grows, and neither do the groups of queries.
    """
    sizes = zip(dataclasses.astuple(shape), dataclasses.astuple(target), strict=True)
    return all(size >= smaller for size, smaller in sizes) and _group_size(target) <= _group_size(shape)


def _group_size(shape: Shape) -> int:
    return shape.num_heads // shape.num_kv_heads


def _candidates(spec: DecoderSpec, parts: Sequence[str], target: Shape) -> list[Shape]:
    """Return the shapes of all ratios that can be cut to the target."""
    found: dict[Shape, None] = {}
    for step in range(1, CANDIDATES):
        try:
            shape = shape_for_ratio(spec, parts, step / CANDIDATES)
        except InvalidOption:  # the family expresses no shape so near
            continue
        # The target may have more of these than a uniform ratio gives it.
        neurons, layers = (max(getattr(shape, name), getattr(target, name)) for name in ("intermediate_size", "num_layers"))
        shape = dataclasses.replace(shape, intermediate_size=neurons, num_layers=layers)
        if can_cut(shape, target):
            found[shape] = None
    return list(found)
