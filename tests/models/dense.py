"""Running a decoder without an engine, and the measure by which two models are called equal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.layers.attention import DenseContext
from hasten.models.decoder import Decoder

TOLERANCE = 1e-4


def dense_logits(decoder: Decoder, prompts: Sequence[Sequence[int]]) -> Tensor:
    """All prompts end to end in one pass. [all tokens, vocabulary]"""
    context = DenseContext(decoder.ops, decoder.rotary, [len(prompt) for prompt in prompts])
    ids = torch.tensor([token for prompt in prompts for token in prompt])
    return decoder.head(decoder.run(decoder.embed(ids), context.positions_T, context))


def differences(ours: Tensor, theirs: Tensor) -> list[str]:
    """What breaks equality: a log-probability off by more than the tolerance, or another id where the choice is clear."""
    ours, theirs = ours.log_softmax(-1), theirs.log_softmax(-1)
    off = (ours - theirs).abs() > TOLERANCE * theirs.abs().clamp(min=1.0)
    top = theirs.topk(2).values
    clear = top[:, 0] - top[:, 1] > TOLERANCE
    wrong = clear & (ours.argmax(-1) != theirs.argmax(-1))
    found = [f"{int(off.sum())} of {off.numel()} log-probabilities differ"] if off.any() or not ours.isfinite().all() else []
    return found + ([f"{int(wrong.sum())} greedy ids differ"] if wrong.any() else [])
