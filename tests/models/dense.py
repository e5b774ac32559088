"""Run a decoder without an engine, and compare the logits of two models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.layers.attention import DenseContext
from hasten.models.decoder import Decoder

TOLERANCE = 1e-4


def dense_logits(decoder: Decoder, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Return the logits of all prompts, concatenated and computed in one pass. [all tokens, vocabulary]"""
    context = DenseContext(decoder.ops, decoder.rotary, [len(prompt) for prompt in prompts])
    ids = torch.tensor([token for prompt in prompts for token in prompt])
    return decoder.head(decoder.run(decoder.embed(ids), context.positions_T, context))


def differences(actual: Tensor, expected: Tensor) -> list[str]:
    """Describe log-probabilities beyond the tolerance, and greedy ids that differ without a near tie."""
    actual, expected = actual.log_softmax(-1), expected.log_softmax(-1)
    off = (actual - expected).abs() > TOLERANCE * expected.abs().clamp(min=1.0)
    top = expected.topk(2).values
    is_clear = top[:, 0] - top[:, 1] > TOLERANCE
    wrong = is_clear & (actual.argmax(-1) != expected.argmax(-1))
    found = [f"{int(off.sum())} of {off.numel()} log-probabilities differ"] if off.any() or not actual.isfinite().all() else []
    return found + ([f"{int(wrong.sum())} greedy ids differ"] if wrong.any() else [])
