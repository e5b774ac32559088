"""What two rows of logits and the token that really came tell: divergence, agreement, surprise.

All in float64 and in nats. The Kullback-Leibler divergence is KL(reference || candidate) = Σ p · (log p - log q) with p the
reference's distribution over the vocabulary and q the candidate's (Kullback & Leibler, 1951): it weighs an error by how much the
reference cares about the token.

Shape suffixes: R positions · V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core.errors import CheckpointError

# Positions that are widened to float64 at a time: 16 rows of 150,000 tokens are 19 MB.
_ROWS = 16


@dataclass(frozen=True, slots=True)
class Divergence:
    """One value per position, float64 on the CPU."""

    kl_R: Tensor  # KL(reference || candidate)
    agrees_R: Tensor  # bool: the likeliest token is the same
    reference_nll_R: Tensor  # -log p of the token that came
    candidate_nll_R: Tensor

    @classmethod
    def join(cls, parts: list[Divergence]) -> Divergence:
        """One after the other."""
        return cls(
            torch.cat([part.kl_R for part in parts]),
            torch.cat([part.agrees_R for part in parts]),
            torch.cat([part.reference_nll_R for part in parts]),
            torch.cat([part.candidate_nll_R for part in parts]),
        )


def divergence(reference_RV: Tensor, candidate_RV: Tensor, targets_R: Tensor) -> Divergence:
    """``targets_R[r]`` is the token that follows position r. Raises ``CheckpointError`` for logits that are no numbers."""
    assert reference_RV.shape == candidate_RV.shape and targets_R.shape == reference_RV.shape[:1]
    for name, logits_RV in (("reference", reference_RV), ("candidate", candidate_RV)):
        if not torch.isfinite(logits_RV).all():
            raise CheckpointError(
                f"the logits of the {name} are not finite numbers (NaN or infinity), so there is nothing to compare",
                remedy="float16 overflows in some models: try bfloat16 or float32",
            )
    rows = zip(*(torch.split(tensor, _ROWS) for tensor in (reference_RV, candidate_RV, targets_R)), strict=True)
    return Divergence.join([_divergence(*row) for row in rows])


def _divergence(reference_RV: Tensor, candidate_RV: Tensor, targets_R: Tensor) -> Divergence:
    logp_RV = torch.log_softmax(reference_RV.double(), dim=-1)
    logq_RV = torch.log_softmax(candidate_RV.double(), dim=-1)
    kl_R = (logp_RV.exp() * (logp_RV - logq_RV)).sum(-1)
    targets_R1 = targets_R[:, None]
    return Divergence(
        kl_R.clamp_min(0.0).cpu(),  # rounding may leave -1e-17
        (reference_RV.argmax(-1) == candidate_RV.argmax(-1)).cpu(),
        -logp_RV.gather(-1, targets_R1)[:, 0].cpu(),
        -logq_RV.gather(-1, targets_R1)[:, 0].cpu(),
    )
