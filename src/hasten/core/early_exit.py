"""Early exit: tokens that leave the model before its last layer. What a step is told of them, in plain data.

Schuster et al., 2022 (CALM, arXiv 2207.07061): a token leaves after the first layer whose state says enough, and the layers that it
does not reach get keys and values from that state. An *exit* after layer e has seen e layers, 0 < e < number of layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

TOKEN_CRITERIA = ("softmax", "saturation", "classifier")  # how sure a state is, asked of every token of the answer
REQUEST_CRITERIA = ("entropy",)  # asked once, of the prompt's last token, for the whole request
TABLES = ("token_table", "prompt_hash")  # made from data: they say the layer of each token, or of the request
EXIT_RULES = ("none", "fixed", *TOKEN_CRITERIA, *REQUEST_CRITERIA, *TABLES)  # layer: the same one for all
DECAY = 4.0  # of a threshold over the answer, where a request says nothing; calibrated thresholds hold for it alone


@dataclass(frozen=True, slots=True)
class ExitCriterion:
    """The last token of a row leaves at the first exit where ``measure`` is above ``threshold``, or where a table says so."""

    measure: str  # or "token_table"
    threshold: float
    whole: bool = False  # all tokens of the row leave with it, and the sequence never goes deeper again


@dataclass(frozen=True, slots=True)
class ExitPlan:
    """How far the tokens of a row go. What is known is obeyed, and the last token may leave earlier."""

    exit_layers: tuple[int | None, ...] = ()  # of each token, how many layers compute it; None: all. Empty: all compute all
    test: ExitCriterion | None = None
    # Whether the layers that a token does not reach get its keys and values, because later tokens of the sequence go there.
    fill: bool = True


def decayed(threshold: float, decay: float | None, share: float) -> float:
    """clip(0.9 λ + 0.1 exp(-decay · share)) to [0, 1], ``share`` of the answer being written (Schuster et al., 2022, §3.5).

    Early tokens have to be surer, because all later ones build on them. None: λ for all. Nothing is surer than 1: no exit.
    """
    if decay is not None:
        threshold = 0.9 * threshold + 0.1 * math.exp(-decay * share)
    return min(1.0, max(0.0, threshold))
