"""Choice of one option per layer: the least sum of costs within a limit of the sum of weights.

This is the multiple-choice knapsack problem. ``minimize`` extends all choices for the first layers by one layer at a time. It drops
a prefix where another costs and weighs no more, and where the bound of the Lagrangian relaxation (Kellerer, Pferschy and Pisinger,
"Knapsack Problems", 2004, chapter 11) exceeds the cost of a choice that is known.

Plain numbers: nothing here knows bits, bytes or models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

# 200 layers of a model leave up to 1,200. Costs in proportion to weights make a subset-sum problem, whose prefixes have no end.
MAX_PREFIXES = 2000
_ROUNDING = 1e-9  # relative: sums of hundreds of floats in another order differ by less


class Option(NamedTuple):
    """What a layer can be. Both numbers are finite and at least 0."""

    cost: float
    weight: float


class _Prefix(NamedTuple):
    """Options of the first layers.

    The last layer's is linked to those before it, so that extending copies nothing.
    """

    cost: float
    weight: float
    option: int  # index of the last layer's option
    before: _Prefix | None  # None for no layers

    def indices(self) -> tuple[int, ...]:
        found, prefix = [], self
        while prefix.before is not None:
            found.append(prefix.option)
            prefix = prefix.before
        return tuple(reversed(found))


def minimize(layers: Sequence[Sequence[Option]], limit: float) -> tuple[int, ...] | None:
    """Return the option of each layer with the least sum of costs, by index.

    The sum of weights is at most ``limit``. Of equal cost it is the lightest; ties beyond that are broken in the
    same way every time. None if even the lightest options exceed the limit. Of more than ``MAX_PREFIXES`` prefixes the most
    promising are kept, and the choice may miss the best.
    """
    greedy = _greedy(layers, limit)
    if greedy is None:
        return None
    known, price = greedy
    slack = _ROUNDING * (known.cost + price * limit)
    # The least that the layers from each on add to: the weight, and cost + price * weight.
    least_weight = _suffix_sums([min(option.weight for option in options) for options in layers])
    least_priced = _suffix_sums([min(option.cost + price * option.weight for option in options) for options in layers])
    prefixes = [_Prefix(0, 0, 0, None)]
    for number, options in enumerate(layers, 1):
        heaviest = limit * (1 + _ROUNDING) - least_weight[number]
        dearest = known.cost + slack + price * limit - least_priced[number]
        prefixes = _without_dominated(
            _Prefix(cost, weight, index, prefix)
            for index, option in enumerate(options)
            for prefix in prefixes
            if (weight := prefix.weight + option.weight) <= heaviest
            and (cost := prefix.cost + option.cost) + price * weight <= dearest
        )
        if len(prefixes) > MAX_PREFIXES:
            prefixes = sorted(prefixes, key=lambda prefix: prefix.cost + price * prefix.weight)[:MAX_PREFIXES]
    found = [prefix for prefix in prefixes if prefix.weight <= limit]
    return min([*found, known], key=lambda prefix: prefix[:2]).indices()


def _without_dominated(prefixes: Iterable[_Prefix]) -> list[_Prefix]:
    """Return the prefixes by rising cost, each lighter than all before."""
    kept: list[_Prefix] = []
    for prefix in sorted(prefixes, key=lambda prefix: prefix[:2]):
        if not kept or prefix.weight < kept[-1].weight:
            kept.append(prefix)
    return kept


def _greedy(layers: Sequence[Sequence[Option]], limit: float) -> tuple[_Prefix, float] | None:
    """Return a choice for all layers within the limit, and the price of a unit of weight there.

    The choice starts with the least costs and takes the steps that save the most weight per cost, until the limit holds. None if no
    choice is within the limit.
    """
    hulls = [_lower_hull(options) for options in layers]
    steps = [
        ((later.cost - one.cost) / (one.weight - later.weight), number, later)
        for number, hull in enumerate(hulls)
        for one, later in pairwise(hull)
    ]
    chosen, price = [hull[0] for hull in hulls], 0.0
    # Along a hull each step costs more per weight, so the sorted steps keep their order within a layer.
    for step_price, number, later in sorted(steps):
        if sum(option.weight for option in chosen) <= limit:
            break
        chosen[number], price = later, step_price
    weight = sum(option.weight for option in chosen)
    if weight > limit:
        return None
    # What the last step left of the limit may pay for cheaper options of some layers.
    for number, options in enumerate(layers):
        fitting = [option for option in options if weight - chosen[number].weight + option.weight <= limit * (1 - _ROUNDING)]
        best = min([chosen[number], *fitting])
        weight, chosen[number] = weight - chosen[number].weight + best.weight, best
    prefix = _Prefix(0, 0, 0, None)
    for options, option in zip(layers, chosen, strict=True):
        prefix = _Prefix(prefix.cost + option.cost, prefix.weight + option.weight, options.index(option), prefix)
    return prefix, price


def _lower_hull(options: Sequence[Option]) -> list[Option]:
    """Return the corners of the lower convex hull by rising cost and falling weight."""
    hull: list[Option] = []
    for option in sorted(options):
        if hull and option.weight >= hull[-1].weight:
            continue
        while len(hull) > 1 and _is_above(hull[-2], hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _is_above(left: Option, middle: Option, right: Option) -> bool:
    """Whether the middle is on or above the line from left to right."""
    return (middle.weight - left.weight) * (right.cost - left.cost) >= (right.weight - left.weight) * (middle.cost - left.cost)


def _suffix_sums(values: Sequence[float]) -> list[float]:
    """Return for each index the sum of the values from it on; the last is 0."""
    return list(accumulate(reversed(values), initial=0.0))[::-1]
