"""``compare`` on two scorers that are lookup tables, with the metrics checked by brute force."""

from __future__ import annotations

import json
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
class TableScorer:
    """A scorer whose logits depend only on the last token."""

    logits_VV: Tensor
    chunk_sizes: list[int] = field(default_factory=list)
    num_closed: int = 0

    def logits(self, token_ids: Sequence[int], chunk_size: int) -> Generator[Tensor, None, None]:
        try:
            for chunk in torch.split(torch.tensor(token_ids), chunk_size):
                self.chunk_sizes.append(len(chunk))
                yield self.logits_VV[chunk]
        finally:
            self.num_closed += 1


def table(seed: int) -> TableScorer:
    return TableScorer(torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) * 3)


def texts(*sizes: int) -> list[TokenText]:
    rng = random.Random(7)
    return [TokenText(tuple(rng.choices(range(SIZE), k=size)), tuple(range(3, 3 * size + 3, 3))) for size in sizes]


@pytest.mark.parametrize("chunk_size", [1, 4, 128])
def test_the_metrics_equal_brute_force(chunk_size: int) -> None:
    reference, candidate, progress = table(1), table(2), []
    text_windows = windows(texts(40, 2, 33), 10)
    quality = compare(reference, candidate, text_windows, chunk_size=chunk_size, progress=progress.append)
    kl, agrees, reference_nll, candidate_nll = [], [], [], []
    for window in text_windows:
        for before, after in zip(window.token_ids[:-1], window.token_ids[1:], strict=True):
            p, q = (torch.softmax(side.logits_VV[before].double(), -1).tolist() for side in (reference, candidate))
            kl.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
            agrees.append(p.index(max(p)) == q.index(max(q)))
            reference_nll.append(-math.log(p[after]))
            candidate_nll.append(-math.log(q[after]))
    count = 39 + 1 + 32
    assert (quality.num_tokens, quality.num_windows, quality.num_bytes) == (count, 9, 3 * count)
    assert quality.kl_mean == pytest.approx(statistics.fmean(kl), rel=1e-9)
    assert quality.kl_max == pytest.approx(max(kl), rel=1e-9)
    assert quality.kl_p99 == pytest.approx(sorted(kl)[math.ceil(0.99 * count) - 1], rel=1e-9)
    assert quality.kl_median == pytest.approx(sorted(kl)[math.ceil(0.5 * count) - 1], rel=1e-9)
    assert quality.top1_agreement == sum(agrees) / count
    assert quality.reference_perplexity == pytest.approx(math.exp(sum(reference_nll) / count), rel=1e-9)
    assert quality.candidate_perplexity == pytest.approx(math.exp(sum(candidate_nll) / count), rel=1e-9)
    assert quality.reference_bits_per_byte == pytest.approx(sum(reference_nll) / math.log(2) / (3 * count), rel=1e-9)
    assert quality.candidate_bits_per_byte == pytest.approx(sum(candidate_nll) / math.log(2) / (3 * count), rel=1e-9)
    assert sum(progress) == count and max(reference.chunk_sizes) <= chunk_size
    assert set(quality.as_dict()) >= {
        "kl_mean",
        "kl_p99",
        "kl_max",
        "kl_interval",
        "kl_upper_bound",
        "top1_agreement",
        "num_tokens",
    }


def test_the_intervals_of_equal_windows_are_those_of_their_means() -> None:
    """Windows of one size: the textbook's interval of a mean, with Student's t of 5 degrees of freedom."""
    cut = windows(texts(61), 10)
    quality = compare(table(1), table(2), cut)
    parts = [compare(table(1), table(2), [window]) for window in cut]

    def interval(means: list[float]) -> tuple[float, float]:
        margin = 2.5706 * statistics.stdev(means) / math.sqrt(6)
        return statistics.fmean(means) - margin, statistics.fmean(means) + margin

    assert quality.num_windows == 6
    assert quality.kl_interval == pytest.approx(interval([part.kl_mean for part in parts]), rel=2e-3)
    assert quality.kl_upper_bound == quality.as_dict()["kl_interval"][1]
    nll = {side: [math.log(getattr(part, f"{side}_perplexity")) for part in parts] for side in ("reference", "candidate")}
    for side in nll:
        expected = tuple(map(math.exp, interval(nll[side])))
        assert getattr(quality, f"{side}_perplexity_interval") == pytest.approx(expected, rel=2e-3)
    difference = interval([after - before for before, after in zip(nll["reference"], nll["candidate"], strict=True)])
    assert quality.perplexity_ratio_interval == pytest.approx(tuple(map(math.exp, difference)), rel=2e-3)
    assert quality.perplexity_ratio == pytest.approx(quality.candidate_perplexity / quality.reference_perplexity, rel=1e-12)


def test_equal_sides_have_intervals_of_no_width_and_one_window_has_none() -> None:
    equal = compare(table(1), table(1), windows(texts(40), 10))
    assert (equal.kl_interval, equal.kl_upper_bound, equal.perplexity_ratio_interval) == ((0.0, 0.0), 0.0, (1.0, 1.0))
    single = compare(table(1), table(2), windows(texts(8), 10))
    assert single.kl_interval is None and single.kl_upper_bound is None and single.candidate_perplexity_interval is None


def test_intervals_of_a_broken_model_are_infinite() -> None:
    """Two windows, whose margin is 12.7 standard errors."""
    wild = table(2)
    wild.logits_VV *= 1e4
    interval = compare(table(1), wild, windows(texts(12), 6)).candidate_perplexity_interval
    assert interval is not None and interval[0] >= 0 and interval[1] == math.inf


@pytest.mark.parametrize("sides", [(1, 2), (2, 1), (2, 2)], ids=str)
def test_perplexities_beyond_float64_are_none_in_json(sides: tuple[int, int]) -> None:
    """Mean -log p above 710, of the reference, the candidate or both."""
    tables = {1: table(1), 2: table(2)}
    tables[2].logits_VV *= 1e4
    quality = compare(*(tables[side] for side in sides), windows(texts(40), 10))
    report = quality.as_dict()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    for side, number in zip(("reference", "candidate"), sides, strict=True):
        assert (report[f"{side}_perplexity"] is None) == (number == 2)
    assert report["perplexity_ratio"] == {(1, 2): None, (2, 1): 0.0, (2, 2): None}[sides]
    assert report["perplexity_ratio_interval"] == {(1, 2): [None, None], (2, 1): [0.0, 0.0], (2, 2): [None, None]}[sides]


def test_a_perfectly_predicted_text_has_perplexity_one() -> None:
    """Every token determines the next, so targets off by one position give a huge perplexity."""
    certain = TableScorer(torch.eye(SIZE).roll(1, 1) * 40)
    text = TokenText(tuple(i % SIZE for i in range(50)))
    quality = compare(certain, certain, windows([text], 20), chunk_size=8)
    assert quality.reference_perplexity == pytest.approx(1.0, abs=1e-9)
    assert quality.reference_bits_per_byte is None and quality.num_bytes is None
    shifted = [Window((*window.token_ids[:-1], window.token_ids[0]), None) for window in windows([text], 1)]
    assert compare(certain, certain, shifted).reference_perplexity > 1e15  # negative control: targets one position late


def test_scorers_are_closed_when_the_comparison_fails() -> None:
    finite, broken = table(1), table(2)
    broken.logits_VV[3] = math.nan
    with pytest.raises(CheckpointError, match="candidate"):
        compare(finite, broken, [Window((1, 3, 2, 2), None)], chunk_size=1)
    assert (finite.num_closed, broken.num_closed) == (1, 1)


def test_no_windows_are_refused() -> None:
    with pytest.raises(InvalidOption, match="no text"):
        compare(table(1), table(1), [])


def test_the_standard_error_of_equal_windows_is_that_of_their_means() -> None:
    clusters = [torch.randn(8, generator=torch.Generator().manual_seed(i), dtype=torch.float64) + i for i in range(6)]
    means = [float(cluster.mean()) for cluster in clusters]
    assert standard_error(clusters) == pytest.approx(statistics.stdev(means) / math.sqrt(6), rel=1e-12)
    assert standard_error(clusters[:1]) is None


def test_two_standard_errors_cover_the_true_mean_of_correlated_tokens() -> None:
    """Windows have unequal sizes, and the coverage is about 95 times in 100."""
    rng, hits = random.Random(3), 0
    for _ in range(400):
        clusters = []
        for _ in range(40):
            level = rng.gauss(0, 1)
            clusters.append(torch.tensor([level + rng.gauss(0, 1) for _ in range(rng.randint(1, 12))], dtype=torch.float64))
        error = standard_error(clusters)
        assert error is not None
        hits += abs(float(torch.cat(clusters).mean())) < 2 * error
    assert 0.90 < hits / 400 < 0.99
