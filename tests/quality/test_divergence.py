"""KL divergence, agreement and negative log-likelihood, compared with exact sums of Python floats."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hasten.core.errors import CheckpointError
from hasten.quality.divergence import Divergence, divergence

DivergenceFunction = Callable[[Tensor, Tensor, Tensor], Divergence]


def exact_log_softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    total = math.fsum(math.exp(x - top) for x in logits)
    return [x - top - math.log(total) for x in logits]


def check(function: DivergenceFunction, scale: float, offset: float, rows: int = 37, size: int = 53) -> None:
    generator = torch.Generator().manual_seed(int(scale))
    reference = torch.randn(rows, size, generator=generator) * scale + offset
    candidate = reference + torch.randn(rows, size, generator=generator) * 0.3 - 2 * offset
    targets = torch.randint(size, (rows,), generator=generator)
    result = function(reference, candidate, targets)
    for row in range(rows):
        p, q = exact_log_softmax(reference[row].tolist()), exact_log_softmax(candidate[row].tolist())
        kl = math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
        assert float(result.kl_R[row]) == pytest.approx(kl, rel=1e-9, abs=1e-14)
        assert bool(result.agrees_R[row]) == (p.index(max(p)) == q.index(max(q)))
        assert float(result.reference_nll_R[row]) == pytest.approx(-p[targets[row]], rel=1e-12)
        assert float(result.candidate_nll_R[row]) == pytest.approx(-q[targets[row]], rel=1e-12)


def swapped_sides(reference: Tensor, candidate: Tensor, targets: Tensor) -> Divergence:
    correct = divergence(reference, candidate, targets)
    return dataclasses.replace(correct, kl_R=divergence(candidate, reference, targets).kl_R)


def single_precision_without_the_maximum(reference: Tensor, candidate: Tensor, targets: Tensor) -> Divergence:
    logp, logq = (x - x.exp().sum(-1, keepdim=True).log() for x in (reference, candidate))
    kl = (logp.exp() * (logp - logq)).sum(-1)
    nll = [-x.gather(-1, targets[:, None])[:, 0] for x in (logp, logq)]
    return Divergence(kl, reference.argmax(-1) == candidate.argmax(-1), *nll)


def targets_off_by_one(reference: Tensor, candidate: Tensor, targets: Tensor) -> Divergence:
    return divergence(reference, candidate, targets.roll(1))


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (8.0, 3.0), (2.0, 500.0)])
def test_every_metric_equals_its_definition(scale: float, offset: float) -> None:
    check(divergence, scale, offset)


@pytest.mark.parametrize("fault", [swapped_sides, single_precision_without_the_maximum, targets_off_by_one])
def test_a_planted_fault_is_caught(fault: DivergenceFunction) -> None:
    """Negative control."""
    with pytest.raises(AssertionError):
        check(fault, 8.0, 3.0)
    with pytest.raises(AssertionError):
        check(fault, 2.0, 500.0)


def test_equal_logits_and_shifted_logits_have_no_divergence() -> None:
    logits, targets = torch.randn(5, 11), torch.arange(5)
    assert divergence(logits, logits, targets).kl_R.tolist() == [0.0] * 5
    assert divergence(logits, logits.double() + 7, targets).kl_R.max() < 1e-12


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    finite, broken = torch.zeros(3, 4), torch.zeros(3, 4)
    broken[1, 2] = value
    with pytest.raises(CheckpointError, match="logits of the candidate are not finite"):
        divergence(finite, broken, torch.zeros(3, dtype=torch.long))
    with pytest.raises(CheckpointError, match="logits of the reference"):
        divergence(broken, finite, torch.zeros(3, dtype=torch.long))
