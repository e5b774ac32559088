"""K-center greedy against its definition, and against the best choice by brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from hasten.compress.distill.selection.diversity import k_center_greedy


def points(seed: int, count: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)))


def radius(distances: torch.Tensor, chosen: tuple[int, ...]) -> float:
    return float(distances[:, list(chosen)].min(1).values.max())


@pytest.mark.parametrize("seed", range(5))
def test_each_choice_is_the_farthest_from_those_before_it(seed):
    embeddings = points(seed, 40)
    chosen = k_center_greedy(embeddings, 12)
    assert chosen[0] == 0
    assert len(set(chosen)) == 12
    distances = torch.cdist(embeddings.double(), embeddings.double())
    for count in range(1, 12):
        nearest = distances[:, chosen[:count]].min(1).values
        assert float(nearest[chosen[count]]) == pytest.approx(float(nearest.max()), abs=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_the_radius_is_at_most_twice_the_best(seed):
    embeddings = points(seed, 12)
    distances = torch.cdist(embeddings.double(), embeddings.double())
    best = min(radius(distances, chosen) for chosen in itertools.combinations(range(12), 4))
    assert radius(distances, tuple(k_center_greedy(embeddings, 4))) <= 2 * best + 1e-6


def test_equal_points_are_chosen_last_and_all_points_once():
    embeddings = F.normalize(torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 0], [-1, 0]]))
    assert k_center_greedy(embeddings, 10) == [0, 4, 2, 1, 3]
