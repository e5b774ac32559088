"""Typical acceptance (Cai et al., 2024, Medusa, arXiv 2401.10774). It is lossy.

Answers are likelier than what plain sampling draws.

A guess is accepted where its probability exceeds min(threshold, alpha · exp(-H)), H being the entropy of the distribution in nats:
where the model is sure only its own token passes, where it is not many do. Of several the likeliest is taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.speculative.acceptance.base import Chance, Guess


@dataclass(frozen=True, slots=True)
class Typical:
    threshold: float
    alpha: float

    @classmethod
    def of(cls, params: SamplingParams) -> Typical:
        return cls(params.posterior_threshold, params.posterior_alpha)

    def choose(self, p_V: Tensor, guesses: Sequence[Guess], chance: Chance) -> int:
        entropy = float(torch.special.entr(p_V).sum())
        likeliest = max((guess.token_id for guess in guesses), key=lambda token_id: float(p_V[token_id]))
        if float(p_V[likeliest]) > min(self.threshold, self.alpha * math.exp(-entropy)):
            return likeliest
        return chance.draws(p_V)
