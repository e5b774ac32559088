"""``Calibration``: a threshold of early exit, what it was found for, and what it cost on that text. Plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """With probability ``certainty`` over the draw of the texts, exits at ``threshold`` keep perplexity within ``tolerance``.

    Learn-then-Test (Angelopoulos et al., 2021, arXiv 2110.01052). It says nothing of another decay, of text of another kind, or of
    a model whose weights were rounded after it was made.
    """

    rule: str  # a measure of ``hasten.core.early_exit``
    tolerance: float  # accepted relative increase of perplexity
    certainty: float
    threshold: float
    decay: float | None  # of the threshold over the answer; None: it stays
    window: int  # tokens of a text
    num_texts: int
    mean_layers: float  # that computed a token of these texts
    mean_risk: float  # nats per token that were lost on them
