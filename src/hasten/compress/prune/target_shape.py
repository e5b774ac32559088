"""``shape_for_ratio``: the sizes of a model after a share of some parts is removed."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence

from hasten.compress.prune.options import HEADS, LAYERS, NEURONS, WIDTH
from hasten.compress.prune.shape import Shape
from hasten.core.errors import InvalidOption
from hasten.models.family import find_family
from hasten.models.spec import DecoderSpec

# Sizes of matrices are rounded to the largest of these of which a size has at least ``MIN_UNITS``. The native kernels compute 16
# outputs at a time, and formats of 4 bits have groups of 32 to 128 inputs.
MULTIPLES = (128, 64, 32, 16)
MIN_UNITS = 8
PANEL = MULTIPLES[-1]  # outputs
# The share by which removing entire key/value heads may miss the wanted share before query heads are chosen within every group.
GROUP_TOLERANCE = 1 / 16
# The field of ``Shape`` that a part changes, and what the field counts.
SIZES = {
    HEADS: ("num_heads", "heads"),
    NEURONS: ("intermediate_size", "neurons per layer"),
    WIDTH: ("hidden_size", "channels"),
    LAYERS: ("num_layers", "layers"),
}


def shape_for_ratio(spec: DecoderSpec, parts: Collection[str], ratio: float) -> Shape:
    """Return the shape without ``ratio`` of each of ``parts``, in the nearest sizes that work.

    Sizes work if a checkpoint of the family can express them and the kernels need no padding. Of two sizes that are equally near,
    the larger is chosen.

    Raises ``InvalidOption`` if the family cannot change the parts alone, and ``UnsupportedModel`` for layers of different sizes.
    """
    shape, kept = Shape.of(spec), 1.0 - ratio
    num_layers = _nearest(kept * shape.num_layers, range(1, shape.num_layers + 1)) if LAYERS in parts else shape.num_layers
    neurons = (
        _nearest(kept * shape.intermediate_size, _sizes(shape.intermediate_size)) if NEURONS in parts else shape.intermediate_size
    )
    shape = dataclasses.replace(shape, num_layers=num_layers, intermediate_size=neurons)
    wanted = {HEADS, WIDTH} & set(parts)
    if not wanted:
        return shape
    family = find_family({"model_type": spec.model_type})
    one_layer = dataclasses.replace(spec, layers=spec.layers[:1])
    first, *others = _by_distance(shape, wanted, kept)
    candidates = (candidate for candidate in (first, *others) if family.sizes_fault(candidate.apply(one_layer)) is None)
    nearest = next(candidates, shape)
    if nearest == shape and first != shape:
        raise InvalidOption(
            f"a {spec.model_type} configuration cannot express the model without {ratio:.0%} of its {' and '.join(sorted(wanted))}",
            allowed=family.sizes_fault(first.apply(one_layer)),
            remedy="Choose another ratio, or other parts",
        )
    return nearest


def size_notes(spec: DecoderSpec, target: Shape, parts: Collection[str], ratio: float) -> list[str]:
    """Return a line per part, with the share that was to stay and the one that stays.

    Sizes that are no multiples of what the kernels compute have a line, too.
    """
    shape, found = Shape.of(spec), []
    for part in (part for part in SIZES if part in parts):
        field, unit = SIZES[part]
        before, after = getattr(shape, field), getattr(target, field)
        groups = ""
        if part == HEADS and target.num_kv_heads < target.num_heads:
            groups = f" in {target.num_kv_heads} group{'s' if target.num_kv_heads > 1 else ''}"
        found.append(f"{part}: {after:,} of {before:,} {unit} stay{groups} ({after / before:.1%}; wanted {1 - ratio:.1%})")
    uneven = {"hidden_size": target.hidden_size, "intermediate_size": target.intermediate_size}
    found += [f"{name}={size} is no multiple of {PANEL}, so products pad it" for name, size in uneven.items() if size % PANEL]
    return found


def unchanged(spec: DecoderSpec, target: Shape, parts: Collection[str]) -> list[str]:
    """Return the parts of which nothing is removed."""
    shape = Shape.of(spec)
    return [part for part, (field, _) in SIZES.items() if part in parts and getattr(shape, field) == getattr(target, field)]


def _by_distance(shape: Shape, wanted: Collection[str], kept: float) -> list[Shape]:
    """Return the shapes with other heads and widths, the nearest to the share ``kept`` first."""
    ranked = []
    for tier, heads_distance, num_heads, num_kv_heads in _heads(shape, kept if HEADS in wanted else None):
        for hidden_size in _sizes(shape.hidden_size) if WIDTH in wanted else [shape.hidden_size]:
            distance = abs(hidden_size / shape.hidden_size - kept) if WIDTH in wanted else 0.0
            candidate = dataclasses.replace(shape, hidden_size=hidden_size, num_heads=num_heads, num_kv_heads=num_kv_heads)
            ranked.append((tier, round(heads_distance + distance, 9), -num_heads, -hidden_size, candidate))
    return [candidate for *_, candidate in sorted(ranked, key=lambda rank: rank[:4])]


def _heads(shape: Shape, kept: float | None) -> Iterator[tuple[int, float, int, int]]:
    """Yield (tier, distance, query heads, key/value heads) of every count.

    ``kept`` None: only of the counts of ``shape``. The first tier are entire key/value heads near the wanted share.
    """
    group_size = shape.num_heads // shape.num_kv_heads
    if kept is None:
        yield 0, 0.0, shape.num_heads, shape.num_kv_heads
        return
    for groups in range(1, shape.num_kv_heads + 1):
        for per_group in range(1, group_size + 1):
            distance = abs(groups * per_group / shape.num_heads - kept)
            is_near = per_group == group_size and distance <= GROUP_TOLERANCE
            yield 0 if is_near else 1, distance, groups * per_group, groups


def _sizes(size: int) -> Sequence[int]:
    """Return the sizes up to ``size`` that the kernels compute without padding, and ``size``."""
    multiple = next((multiple for multiple in MULTIPLES if size >= MIN_UNITS * multiple), PANEL)
    return [*range(multiple, size, multiple), size]


def _nearest(value: float, sizes: Sequence[int]) -> int:
    return min(sizes, key=lambda size: (round(abs(size - value), 9), -size))
