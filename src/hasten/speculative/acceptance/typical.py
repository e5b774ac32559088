"""Typical acceptance (Cai et al., 2024, Medusa, arXiv 2401.10774), which is lossy.

A draft token is accepted if its probability exceeds min(threshold, alpha · exp(-H)), where H is the entropy of the distribution in
nats. A certain model accepts only its own token, an uncertain one many. So outputs are likelier than plain samples. Of several
draft tokens the most likely one counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.speculative.acceptance.base import DraftToken, Rng


@dataclass(frozen=True, slots=True)
class Typical:
    threshold: float
    alpha: float

    @classmethod
    def from_params(cls, params: SamplingParams) -> Typical:
        return cls(params.posterior_threshold, params.posterior_alpha)

    def choose(self, p_V: Tensor, draft_tokens: Sequence[DraftToken], rng: Rng) -> int:
        entropy = float(torch.special.entr(p_V).sum())
        best = max((draft.token_id for draft in draft_tokens), key=lambda token_id: float(p_V[token_id]))
        if float(p_V[best]) > min(self.threshold, self.alpha * math.exp(-entropy)):
            return best
        return rng.sample(p_V)
