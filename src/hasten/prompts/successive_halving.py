"""``successive_halving``: the best of many arms, for a fraction of the scores of all.

All arms are scored on a few items, the better half of them on twice as many, and so on (Karnin, Koren & Somekh, 2013, ICML;
Jamieson & Talwalkar, 2016, AISTATS). The last two arms are scored on all items. That costs log2(n) scores per item instead of n:
of 64 arms, a tenth. Unlike a tournament it shows no difference; it finds the best one with high probability.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MIN_ITEMS = 4  # of the first rung; fewer scores of 0 and 1 tell little

# Takes an arm and a number of items; returns the scores on the first items, as many as that.
ScoresOf = Callable[[int, int], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Rung:
    num_arms: int  # that are scored
    num_items: int  # that each has at the end of the rung, those of earlier rungs included


@dataclass(frozen=True, slots=True)
class RankedArm:
    arm: int
    num_items: int  # that it was scored on
    mean: float  # of the scores; -inf is worse than all others


def rungs(num_arms: int, num_items: int) -> list[Rung]:
    """Return the rungs: of each, half the arms of the one before, and new items as many as doubled."""
    sizes = [num_arms]
    while sizes[-1] // 2 >= 2:
        sizes.append(sizes[-1] // 2)
    unit = num_items / (2 ** len(sizes) - 1)  # new items per arm of the first rung; they double
    ends = [math.ceil(unit * (2**number - 1)) for number in range(1, len(sizes) + 1)]
    return [Rung(size, min(num_items, max(MIN_ITEMS, end))) for size, end in zip(sizes, ends, strict=True)]


def successive_halving(
    arms: Sequence[int], num_items: int, scores_of: ScoresOf, *, seed: int = 0, is_spent: Callable[[], bool] = lambda: False
) -> list[RankedArm]:
    """Return the scored arms, best first: by the rung that they reached, then by their means there.

    Equal means are ordered at random by ``seed``. If ``is_spent`` becomes true, no further arm is scored, and the last full rung
    decides; in the first one, the arms that were scored.
    """
    order = {arm: rank for rank, arm in enumerate(random.Random(seed).sample(list(arms), len(arms)))}
    left, ranked = list(arms), list[RankedArm]()
    for rung in rungs(len(arms), num_items):
        scored: list[RankedArm] = []
        for arm in left[: rung.num_arms]:
            if is_spent():
                break
            scored.append(RankedArm(arm, rung.num_items, statistics.fmean(scores_of(arm, rung.num_items))))
        if len(scored) < rung.num_arms and ranked:
            break
        scored.sort(key=lambda one: (-one.mean, order[one.arm]))
        ranked = scored + ranked[len(scored) :]
        left = [one.arm for one in scored]
        if len(scored) < rung.num_arms:
            break
    return ranked
