"""When the learning rate is how high, and when held-out text is read. Functions of the step alone."""

from __future__ import annotations

import math

EVALUATIONS = 20  # in a whole training
EVALUATION_SHARE = 0.2  # of the windows that are trained on are read for evaluations, at most
MAX_WARM_UP = 100  # steps
MAX_WINDOWS = 64  # of an evaluation


def warm_up(total: int) -> int:
    """Updates before the rate is at its peak."""
    return max(1, min(MAX_WARM_UP, total // 10))


def rate(step: int, total: int, peak: float) -> float:
    """Of the update that follows ``step`` updates: linear from nearly 0, then half a cosine to 0 (Loshchilov & Hutter, 2017)."""
    rising = warm_up(total)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def evaluates_after(step: int, total: int) -> bool:
    """Whether held-out text is read when ``step`` updates are made."""
    return step == total or step % max(1, total // EVALUATIONS) == 0


def evaluation_windows(total: int, batch: int) -> int:
    """Held-out windows of one evaluation, at most."""
    affordable = int(total * batch * EVALUATION_SHARE / EVALUATIONS)
    return min(max(affordable, batch), MAX_WINDOWS)
