"""``compare``: two scorers read the same windows; their logits are compared piece by piece and thrown away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

import torch

from hasten.core.errors import InvalidOption
from hasten.quality.base import Scorer
from hasten.quality.divergence import Divergence, divergence
from hasten.quality.quality import Quality, summarise
from hasten.quality.window import Window

# Positions whose logits of both sides are in memory at a time: 128 of a vocabulary of 151,936 are 78 MB for each.
PIECE = 128


def compare(
    reference: Scorer,
    candidate: Scorer,
    windows: Sequence[Window],
    *,
    piece: int = PIECE,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Quality:
    """How far ``candidate`` is from ``reference``. ``progress`` hears how many more tokens are done.

    Raises ``CheckpointError`` if either side's logits are not finite.
    """
    if not windows:
        raise InvalidOption("there is no text to compare on", allowed="at least one window")
    return summarise(windows, [_read(reference, candidate, window, piece, progress) for window in windows])


def _read(reference: Scorer, candidate: Scorer, window: Window, piece: int, progress: Callable[[int], None]) -> Divergence:
    read, targets = window.token_ids[:-1], torch.tensor(window.token_ids[1:])
    parts = []
    with closing(reference.logits(read, piece)) as ours, closing(candidate.logits(read, piece)) as theirs:
        for targets_R, reference_RV, candidate_RV in zip(torch.split(targets, piece), ours, theirs, strict=True):
            device = reference_RV.device
            parts.append(divergence(reference_RV, candidate_RV.to(device), targets_R.to(device)))
            progress(len(targets_R))
    return Divergence.join(parts)
