"""Confidence measures: how sure the model is of the next token after an early layer, from 0 to 1.

A token exits where the number is above the request's threshold. A row's number depends on that row alone, to the bit.
Softmax, saturation and classifier: CALM (Schuster et al., 2022, arXiv 2207.07061). Entropy: FastBERT (Liu et al., 2020,
arXiv 2004.02178), whose *speed* is 1 minus the threshold.

Shape suffixes: R rows · E hidden size · V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hasten.core.early_exit import REQUEST_CRITERIA, TOKEN_CRITERIA

if TYPE_CHECKING:
    from hasten.layers.early_exit import ExitHead


@dataclass(slots=True)
class ExitInput:
    """What a confidence measure reads: rows of hidden states at one exit."""

    hidden_RE: Tensor  # after the exit's layer
    previous_hidden_RE: Tensor | None  # after the layer before it; None where no measure needs it
    exit: ExitHead
    head: Callable[[Tensor], Tensor]  # the model's final norm and lm_head, to float32 logits
    _logits_RV: Tensor | None = field(default=None, init=False)

    @property
    def logits_RV(self) -> Tensor:
        """The exit's logits, computed at the first access."""
        if self._logits_RV is None:
            self._logits_RV = self.head(self.exit.tuned_lens(self.hidden_RE))
        return self._logits_RV

    def computed_logits(self, row: int) -> Tensor | None:
        """Return the logits of one row [1, V], or None if the measure did not compute logits."""
        return None if self._logits_RV is None else self._logits_RV[row : row + 1]


@dataclass(frozen=True, slots=True)
class ConfidenceMeasure:
    compute: Callable[[ExitInput], Tensor]  # [R], float32, from 0 to 1
    needs_previous_hidden: bool = False


def softmax(exit_input: ExitInput) -> Tensor:
    """Return the gap between the two highest probabilities. Every exit computes the full lm_head."""
    top_R2 = exit_input.logits_RV.softmax(-1).topk(2).values
    return top_R2[:, 0] - top_R2[:, 1]


def saturation(exit_input: ExitInput) -> Tensor:
    """Return the cosine between the hidden states before and after the exit's layer. Needs no training."""
    assert exit_input.previous_hidden_RE is not None
    now_RE, previous_RE = exit_input.hidden_RE.float(), exit_input.previous_hidden_RE.float()
    product_R = (now_RE * previous_RE).sum(-1)
    norms_R = (now_RE.square().sum(-1) * previous_RE.square().sum(-1)).sqrt()
    return (product_R / norms_R.clamp_min(1e-30)).clamp(0.0, 1.0)


def classifier(exit_input: ExitInput) -> Tensor:
    """Return the trained probability that the full model chooses the same token: one dot product per row."""
    return exit_input.exit.agreement_logit(exit_input.hidden_RE).sigmoid()


def entropy(exit_input: ExitInput) -> Tensor:
    """Return 1 minus the entropy of the next token, relative to the uniform distribution's."""
    logp_RV = exit_input.logits_RV.log_softmax(-1)
    entropy_R = -torch.nan_to_num(logp_RV.exp() * logp_RV).sum(-1)  # 0 · -inf is 0
    return (1.0 - entropy_R / math.log(max(2, logp_RV.shape[-1]))).clamp(0.0, 1.0)


CONFIDENCE_MEASURES: Mapping[str, ConfidenceMeasure] = {
    "softmax": ConfidenceMeasure(softmax),
    "saturation": ConfidenceMeasure(saturation, needs_previous_hidden=True),
    "classifier": ConfidenceMeasure(classifier),
    "entropy": ConfidenceMeasure(entropy),
}
assert set(CONFIDENCE_MEASURES) == {*TOKEN_CRITERIA, *REQUEST_CRITERIA}
