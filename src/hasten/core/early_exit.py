"""Early exit: which layer a token leaves the model after, as plain data.

CALM (Schuster et al., 2022, arXiv 2207.07061): a token exits after the first layer at which the model is confident enough. The
layers that it skips get keys and values from that layer's hidden state. Exit layer e means that e layers run, 0 < e < num_layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

TOKEN_CRITERIA = ("softmax", "saturation", "classifier")  # confidence measures that every output token is tested with
REQUEST_CRITERIA = ("entropy",)  # confidence measures that the prompt's last token is tested with, once for the entire request
TABLES = ("token_table", "prompt_hash")  # tables made from data: one exit layer per token id, or per prompt
EXIT_RULES = ("none", "fixed", *TOKEN_CRITERIA, *REQUEST_CRITERIA, *TABLES)  # "fixed": one exit layer for all tokens
DECAY = 4.0  # default of ``exit_decay``; calibrated thresholds hold for this value only


@dataclass(frozen=True, slots=True)
class ExitCriterion:
    """The last token of a row exits at the first exit where its confidence is above ``threshold``."""

    measure: str  # a name in ``CONFIDENCE_MEASURES``, or "token_table": the table then gives the exit layer
    threshold: float
    per_request: bool = False  # all tokens of the row exit with the last one, and so do all later tokens of the sequence


@dataclass(frozen=True, slots=True)
class ExitPlan:
    """How many layers compute each token of a row."""

    exit_layers: tuple[int | None, ...] = ()  # per token; None: all layers. Empty: all layers compute all tokens
    criterion: ExitCriterion | None = None  # may let the last token exit before its entry of ``exit_layers``
    fill_kv: bool = True  # whether skipped layers get keys and values: later tokens of the sequence attend there


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitCalibration:
    """A threshold of a confidence measure, its conditions, and its cost on the calibration texts.

    With probability ``certainty`` over the draw of the texts, exits at ``threshold`` raise perplexity by at most ``tolerance``
    (Learn-then-Test, Angelopoulos et al., 2021, arXiv 2110.01052). The guarantee does not cover another decay, another kind of
    text, or a model that was quantised after the calibration.
    """

    rule: str  # a name in ``CONFIDENCE_MEASURES``
    tolerance: float  # accepted relative increase of perplexity
    certainty: float
    threshold: float
    decay: float | None  # as ``decayed_threshold`` takes it
    window: int  # tokens per text
    num_texts: int
    mean_layers: float  # layers that compute a token of these texts
    mean_risk: float  # loss in nats per token on these texts


def decayed_threshold(threshold: float, decay: float | None, share: float) -> float:
    """Return 0.9 λ + 0.1 exp(-decay · share), clipped to [0, 1].

    ``threshold`` is λ (Schuster et al., 2022, §3.5). ``share`` is the part of ``max_tokens`` that is written. Early tokens need
    more confidence, as all later tokens build on them. ``decay`` None returns λ. A threshold of 1 is never passed.
    """
    if decay is not None:
        threshold = 0.9 * threshold + 0.1 * math.exp(-decay * share)
    return min(1.0, max(0.0, threshold))
