"""The tree of the likeliest paths, against all paths there are."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from hasten.speculative.static_tree import StaticTree


def paths(tree: StaticTree) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for rank, parent in zip(tree.ranks, tree.parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), rank))
    return found


@pytest.mark.parametrize("seed", range(10))
def test_it_has_the_likeliest_paths_in_their_order(seed: int) -> None:
    draw = random.Random(seed)
    accuracies = [sorted((draw.random() / 2 for _ in range(draw.randint(1, 4))), reverse=True) for _ in range(draw.randint(1, 4))]
    ranks = [range(len(place)) for place in accuracies]
    every = [path for depth in range(1, len(accuracies) + 1) for path in itertools.product(*ranks[:depth])]
    every.sort(key=lambda path: -math.prod(accuracies[i][rank] for i, rank in enumerate(path)))
    tree = StaticTree.best(accuracies, 12)
    assert paths(tree) == every[:12]
    assert tree.depths == tuple(len(path) - 1 for path in paths(tree))


def test_a_guess_that_is_never_right_is_not_made() -> None:
    tree = StaticTree.best([[0.5, 0.0], [0.0]])
    assert paths(tree) == [(0,)]
