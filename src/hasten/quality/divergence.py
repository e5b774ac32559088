"""Comparison of two models' logits: KL divergence, top-1 agreement and negative log-likelihood.

All values are in float64 and in nats. KL(reference || candidate) = Σ p · (log p - log q) (Kullback & Leibler, 1951). Here p is the
reference's distribution over the vocabulary, and q the candidate's.

Shape suffixes: R positions · V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from hasten.core.errors import CheckpointError

# Positions converted to float64 at a time: 16 rows of 150,000 tokens take 19 MB.
_ROWS_PER_CHUNK = 16


@dataclass(frozen=True, slots=True)
class Divergence:
    """One value per position, float64 on the CPU."""

    kl_R: Tensor  # KL(reference || candidate)
    agrees_R: Tensor  # bool: both sides have the same most likely token
    reference_nll_R: Tensor  # -log p of the next token of the text
    candidate_nll_R: Tensor

    @classmethod
    def join(cls, parts: list[Divergence]) -> Divergence:
        """Return the concatenation of ``parts``."""
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))


def divergence(reference_RV: Tensor, candidate_RV: Tensor, targets_R: Tensor) -> Divergence:
    """Return the comparison; ``targets_R[r]`` follows position r.

    Raises ``CheckpointError`` for logits that are not finite.
    """
    assert reference_RV.shape == candidate_RV.shape and targets_R.shape == reference_RV.shape[:1]
    for name, logits_RV in (("reference", reference_RV), ("candidate", candidate_RV)):
        if not torch.isfinite(logits_RV).all():
            raise CheckpointError(
                f"the logits of the {name} are not finite numbers (NaN or infinity), so there is nothing to compare",
                remedy="float16 overflows in some models: try bfloat16 or float32",
            )
    rows = zip(*(torch.split(tensor, _ROWS_PER_CHUNK) for tensor in (reference_RV, candidate_RV, targets_R)), strict=True)
    return Divergence.join([_divergence(*row) for row in rows])


def _divergence(reference_RV: Tensor, candidate_RV: Tensor, targets_R: Tensor) -> Divergence:
    logp_RV = torch.log_softmax(reference_RV.double(), dim=-1)
    logq_RV = torch.log_softmax(candidate_RV.double(), dim=-1)
    kl_R = (logp_RV.exp() * (logp_RV - logq_RV)).sum(-1)
    targets_R1 = targets_R[:, None]
    return Divergence(
        kl_R.clamp_min(0.0).cpu(),  # rounding errors reach -1e-17
        (reference_RV.argmax(-1) == candidate_RV.argmax(-1)).cpu(),
        -logp_RV.gather(-1, targets_R1)[:, 0].cpu(),
        -logq_RV.gather(-1, targets_R1)[:, 0].cpu(),
    )
