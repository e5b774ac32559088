"""``compare``: the quality of a candidate against a reference on the same windows of text."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Protocol

import torch
from torch import Tensor

from hasten.core.errors import InvalidOption
from hasten.quality.divergence import Divergence, divergence
from hasten.quality.quality import Quality, summarize
from hasten.quality.window import Window

# Positions whose logits are in memory at a time: 128 of a vocabulary of 151,936 take 78 MB per side.
CHUNK_SIZE = 128


class Scorer(Protocol):
    """A model that scores given text (teacher forcing) instead of sampling."""

    def logits(self, token_ids: Sequence[int], chunk_size: int) -> Generator[Tensor, None, None]:
        """Yield the logits after each token in order, in chunks of ``chunk_size`` positions.

        Each [R, V], float32. Closing the generator releases what the scorer holds for the text.
        """
        ...


def compare(
    reference: Scorer,
    candidate: Scorer,
    windows: Sequence[Window],
    *,
    chunk_size: int = CHUNK_SIZE,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Quality:
    """Return how far ``candidate`` is from ``reference``.

    ``progress`` receives the number of further tokens compared. Raises ``InvalidOption`` without windows, and ``CheckpointError``
    if the logits of a side are not finite.
    """
    if not windows:
        raise InvalidOption("there is no text to compare on", allowed="at least one window")
    return summarize(windows, [_compare_window(reference, candidate, window, chunk_size, progress) for window in windows])


def _compare_window(
    reference: Scorer, candidate: Scorer, window: Window, chunk_size: int, progress: Callable[[int], None]
) -> Divergence:
    inputs, next_ids_T = window.token_ids[:-1], torch.tensor(window.token_ids[1:], dtype=torch.int64, device="cpu")
    targets = torch.split(next_ids_T, chunk_size)
    parts = []
    with (
        closing(reference.logits(inputs, chunk_size)) as reference_chunks,
        closing(candidate.logits(inputs, chunk_size)) as candidate_chunks,
    ):
        for targets_R, reference_RV, candidate_RV in zip(targets, reference_chunks, candidate_chunks, strict=True):
            device = reference_RV.device
            parts.append(divergence(reference_RV, candidate_RV.to(device), targets_R.to(device)))
            progress(len(targets_R))
    return Divergence.join(parts)
