"""Comparing two scorers that are made of tables, and the figures against brute force."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from hasten.core.errors import CheckpointError, InvalidOption
from hasten.quality.compare import compare
from hasten.quality.quality import standard_error
from hasten.quality.window import TokenText, Window, windows

SIZE = 19


@dataclass
class Table:
    """Logits that depend on the last token alone."""

    logits_VV: Tensor
    pieces: list[int] = field(default_factory=list)
    closed: int = 0

    def logits(self, token_ids: Sequence[int], chunk_size: int) -> Generator[Tensor, None, None]:
        try:
            for part in torch.split(torch.tensor(token_ids), chunk_size):
                self.pieces.append(len(part))
                yield self.logits_VV[part]
        finally:
            self.closed += 1


def table(seed: int) -> Table:
    return Table(torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) * 3)


def texts(*sizes: int) -> list[TokenText]:
    draw = random.Random(7)
    return [TokenText(tuple(draw.choices(range(SIZE), k=size)), tuple(range(3, 3 * size + 3, 3))) for size in sizes]


@pytest.mark.parametrize("chunk_size", [1, 4, 128])
def test_the_figures_are_those_of_brute_force(chunk_size: int) -> None:
    reference, candidate, progress = table(1), table(2), []
    cut = windows(texts(40, 2, 33), 10)
    found = compare(reference, candidate, cut, chunk_size=chunk_size, progress=progress.append)
    kl, agrees, ours, theirs = [], [], [], []
    for window in cut:
        for before, after in zip(window.token_ids[:-1], window.token_ids[1:], strict=True):
            p, q = (torch.softmax(side.logits_VV[before].double(), -1).tolist() for side in (reference, candidate))
            kl.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
            agrees.append(p.index(max(p)) == q.index(max(q)))
            ours.append(-math.log(p[after]))
            theirs.append(-math.log(q[after]))
    count = 39 + 1 + 32
    assert (found.num_tokens, found.num_windows, found.num_bytes) == (count, 9, 3 * count)
    assert found.kl_mean == pytest.approx(statistics.fmean(kl), rel=1e-9)
    assert found.kl_max == pytest.approx(max(kl), rel=1e-9)
    assert found.kl_p99 == pytest.approx(sorted(kl)[math.ceil(0.99 * count) - 1], rel=1e-9)
    assert found.kl_median == pytest.approx(sorted(kl)[math.ceil(0.5 * count) - 1], rel=1e-9)
    assert found.top1_agreement == sum(agrees) / count
    assert found.reference_perplexity == pytest.approx(math.exp(sum(ours) / count), rel=1e-9)
    assert found.candidate_perplexity == pytest.approx(math.exp(sum(theirs) / count), rel=1e-9)
    assert found.reference_bits_per_byte == pytest.approx(sum(ours) / math.log(2) / (3 * count), rel=1e-9)
    assert found.candidate_bits_per_byte == pytest.approx(sum(theirs) / math.log(2) / (3 * count), rel=1e-9)
    assert sum(progress) == count and max(reference.pieces) <= chunk_size
    assert set(found.as_dict()) >= {"kl_mean", "kl_p99", "kl_max", "top1_agreement", "num_tokens"}


def test_a_text_that_is_foreseen_has_perplexity_one() -> None:
    """Each token foretells the next: an error of one position would show as a huge perplexity."""
    sure = Table(torch.eye(SIZE).roll(1, 1) * 40)
    text = TokenText(tuple(i % SIZE for i in range(50)))
    found = compare(sure, sure, windows([text], 20), chunk_size=8)
    assert found.reference_perplexity == pytest.approx(1.0, abs=1e-9)
    assert found.reference_bits_per_byte is None and found.num_bytes is None
    late = [Window((*window.token_ids[:-1], window.token_ids[0]), None) for window in windows([text], 1)]
    assert compare(sure, sure, late).reference_perplexity > 1e15  # negative control: targets one position late


def test_scorers_are_closed_when_the_comparison_fails() -> None:
    sound, broken = table(1), table(2)
    broken.logits_VV[3] = math.nan
    with pytest.raises(CheckpointError, match="candidate"):
        compare(sound, broken, [Window((1, 3, 2, 2), None)], chunk_size=1)
    assert (sound.closed, broken.closed) == (1, 1)


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(InvalidOption, match="no text"):
        compare(table(1), table(1), [])


def test_standard_error_is_that_of_the_means_of_equal_windows() -> None:
    clusters = [torch.randn(8, generator=torch.Generator().manual_seed(i), dtype=torch.float64) + i for i in range(6)]
    means = [float(cluster.mean()) for cluster in clusters]
    assert standard_error(clusters) == pytest.approx(statistics.stdev(means) / math.sqrt(6), rel=1e-12)
    assert standard_error(clusters[:1]) is None


def test_standard_error_covers_the_truth() -> None:
    """Of correlated tokens in windows of unequal sizes, two standard errors hold the true mean about 95 times in 100."""
    draw, hits = random.Random(3), 0
    for _ in range(400):
        clusters = []
        for _ in range(40):
            level = draw.gauss(0, 1)
            clusters.append(torch.tensor([level + draw.gauss(0, 1) for _ in range(draw.randint(1, 12))], dtype=torch.float64))
        error = standard_error(clusters)
        assert error is not None
        hits += abs(float(torch.cat(clusters).mean())) < 2 * error
    assert 0.90 < hits / 400 < 0.99
