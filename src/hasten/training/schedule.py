"""The learning-rate schedule and the evaluation schedule: functions of the step alone."""

from __future__ import annotations

import math

EVALUATIONS = 20  # per training
EVALUATION_SHARE = 0.2  # upper limit of the sequences read for evaluation, relative to those trained on
MAX_WARMUP_STEPS = 100
MAX_EVALUATION_SEQUENCES = 64


def warmup_steps(total_steps: int) -> int:
    return max(1, min(MAX_WARMUP_STEPS, total_steps // 10))


def learning_rate(step: int, total_steps: int, peak: float) -> float:
    """Return the rate of the update after ``step`` updates.

    Linear warm-up, then cosine decay to 0 (Loshchilov & Hutter, 2017).
    """
    warmup = warmup_steps(total_steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))


def is_evaluation_step(step: int, total_steps: int) -> bool:
    """Return whether an evaluation follows update number ``step``."""
    return step == total_steps or step % max(1, total_steps // EVALUATIONS) == 0


def num_evaluation_sequences(total_steps: int, batch: int) -> int:
    """Return the largest number of validation sequences that one evaluation reads."""
    affordable = int(total_steps * batch * EVALUATION_SHARE / EVALUATIONS)
    return min(max(affordable, batch), MAX_EVALUATION_SEQUENCES)
