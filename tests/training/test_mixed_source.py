"""A mixture takes its share from each source, evenly and without a gap, and depends on seed and step alone."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch

from hasten.training.corpus import Batch
from hasten.training.mixed_source import MixedSource


class Recorder:
    """A source whose batches say its name and their step."""

    def __init__(self, name: int) -> None:
        self.name = name

    @property
    def summary(self) -> str:
        return f"source {self.name}"

    def batch(self, step: int, size: int, seq_len: int, seed: int) -> Batch:
        return Batch(torch.tensor([[self.name, step]]), seed)

    def validation_batches(self, size: int, seq_len: int, limit: int) -> Iterator[Batch]:
        yield Batch(torch.tensor([[self.name, limit]]), 0)


def read(mixture: MixedSource, steps: int, seed: int = 3) -> list[tuple[int, int]]:
    return [tuple(mixture.batch(step, 2, 8, seed).ids_BS[0].tolist()) for step in range(steps)]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 1 / 3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_prefix_has_the_share_within_one_batch(share, seed):
    batches = read(MixedSource(Recorder(0), Recorder(1), share), 300, seed)
    for end in range(1, 301):
        counts = [sum(name == source for name, _ in batches[:end]) for source in (0, 1)]
        assert abs(counts[1] - Fraction(share) * end) <= 1, (end, counts)
    for source in (0, 1):
        steps = [step for name, step in batches if name == source]
        assert steps == list(range(len(steps))), "each source is read without a gap"


def test_steps_are_independent_of_their_order_and_seeds_differ():
    mixture = MixedSource(Recorder(0), Recorder(1), 0.1)
    expected = read(mixture, 100)
    assert [tuple(mixture.batch(step, 2, 8, 3).ids_BS[0].tolist()) for step in reversed(range(100))] == expected[::-1]
    assert len({str(read(mixture, 20, seed)) for seed in range(8)}) > 2
    assert read(mixture, 3) == [tuple(mixture.batch(step, 2, 8, 3).ids_BS[0].tolist()) for step in range(3)]


def test_a_share_of_whole_numbers_has_no_rounding_after_many_steps():
    mixture = MixedSource(Recorder(0), Recorder(1), 1.0)
    far = 10**9
    assert mixture.batch(far, 2, 8, 3).ids_BS.tolist() == [[1, far]]
    assert MixedSource(Recorder(0), Recorder(1), 0.0).batch(far, 2, 8, 3).ids_BS.tolist() == [[0, far]]


def test_validation_is_that_of_the_main_source_and_mixtures_nest():
    mixture = MixedSource(MixedSource(Recorder(0), Recorder(1), 0.5), Recorder(2), 0.25)
    assert [batch.ids_BS.tolist() for batch in mixture.validation_batches(2, 8, 5)] == [[[0, 5]]]
    names = [name for name, _ in read(mixture, 400)]
    assert [names.count(name) for name in range(3)] == pytest.approx([150, 150, 100], abs=1)
    assert mixture.summary == "source 0; 50% of batches: source 1; 25% of batches: source 2"
