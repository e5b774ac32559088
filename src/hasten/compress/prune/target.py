"""``find_target``: the sizes of a pruned model, by a ratio, a number of parameters or a latency."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hasten.compress.prune.options import NEURONS, PruneOptions
from hasten.compress.prune.shape import Shape, num_parameters
from hasten.compress.prune.target_shape import shape_for_ratio
from hasten.core.errors import InvalidOption
from hasten.models.spec import DecoderSpec

MAX_RATIO = 0.99
STEPS = 990  # of the ratio, from 0 to ``MAX_RATIO``
LATENCY_STEPS = 33  # of the ratio: at most six shapes are measured

Latency = Callable[[Shape], float]  # of a shape, in milliseconds per token


@dataclass(frozen=True, slots=True)
class Target:
    shape: Shape
    ratio: float  # of which it is the shape


def find_target(spec: DecoderSpec, options: PruneOptions, latency: Latency) -> Target:
    """Return the sizes after pruning. ``latency`` is called only with a target latency.

    Raises ``InvalidOption`` for a target that the model already has or cannot reach, and for parts that the family cannot change.
    """
    if options.target_params is not None:
        return within_parameters(spec, options.parts, options.target_params)
    if options.target_latency is not None:
        return within_latency(spec, options.parts, options.target_latency, latency)
    assert options.ratio is not None
    shape = Shape.of(spec) if options.ratio == 0 else shape_for_ratio(spec, options.parts, options.ratio)
    return Target(shape, options.ratio)


def within_parameters(spec: DecoderSpec, parts: Sequence[str], most: int) -> Target:
    """Return the shape of the smallest ratio with at most ``most`` parameters.

    Other parts than neurons change in large steps. So neurons get back what fits.
    """
    parameters = num_parameters(spec)
    smallest = shape_for_ratio(spec, parts, MAX_RATIO)
    least = num_parameters(smallest.apply(spec))
    if not least <= most < parameters:
        raise InvalidOption(
            "pruning these parts does not lead to target_params",
            got=f"{most:,}",
            allowed=f"from {least:,} to below {parameters:,}, the model's",
            remedy="Choose another number, or more parts",
        )
    step = _first_within(STEPS, lambda step: num_parameters(_shape(spec, parts, step / STEPS).apply(spec)), most)
    target = _target(spec, parts, step / STEPS)
    return Target(_with_neurons(spec, target.shape, most) if NEURONS in parts else target.shape, target.ratio)


def within_latency(spec: DecoderSpec, parts: Sequence[str], most: float, latency: Latency) -> Target:
    """Return the shape of the smallest ratio whose measured latency is at most ``most`` milliseconds."""
    unpruned, smallest = (latency(shape) for shape in (Shape.of(spec), shape_for_ratio(spec, parts, MAX_RATIO)))
    if not smallest <= most < unpruned:
        raise InvalidOption(
            "pruning these parts does not lead to target_latency",
            got=f"{most:g} ms per token",
            allowed=f"from {smallest:.3g} to below {unpruned:.3g}, the model's",
            remedy="Choose another latency, or more parts",
        )
    measured = {Shape.of(spec): unpruned}

    def remembered(step: int) -> float:
        shape = _shape(spec, parts, step / LATENCY_STEPS)
        if shape not in measured:
            measured[shape] = latency(shape)
        return measured[shape]

    return _target(spec, parts, _first_within(LATENCY_STEPS, remembered, most) / LATENCY_STEPS)


def _first_within(steps: int, cost: Callable[[int], float], most: float) -> int:
    """Return the first step whose cost is within ``most``, by bisection.

    Step 0 is not, and the last one is.
    """
    above, within = 0, steps
    while within - above > 1:
        middle = (above + within) // 2
        if cost(middle) <= most:
            within = middle
        else:
            above = middle
    return within


def _target(spec: DecoderSpec, parts: Sequence[str], share: float) -> Target:
    return Target(_shape(spec, parts, share), share * MAX_RATIO)


def _shape(spec: DecoderSpec, parts: Sequence[str], share: float) -> Shape:
    """Return the shape at a share of ``MAX_RATIO``.

    It is that of the model where the family expresses none so near to it.
    """
    try:
        return shape_for_ratio(spec, parts, share * MAX_RATIO)
    except InvalidOption:
        if share == 1:
            raise
        return Shape.of(spec)


def _with_neurons(spec: DecoderSpec, shape: Shape, most: int) -> Shape:
    """Return the shape with the most neurons of at most ``most`` parameters."""
    ratios = (step / STEPS for step in range(STEPS + 1))
    sizes = {shape_for_ratio(spec, (NEURONS,), ratio).intermediate_size for ratio in ratios} | {shape.intermediate_size}
    shapes = (dataclasses.replace(shape, intermediate_size=size) for size in sorted(sizes, reverse=True))
    return next(shape for shape in shapes if num_parameters(shape.apply(spec)) <= most)
