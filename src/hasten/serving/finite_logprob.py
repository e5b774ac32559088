"""``finite_logprob``: a log-probability as JSON can write it."""

from __future__ import annotations

LEAST = -9999.0  # stands for minus infinity, which JSON lacks; vLLM writes the same number


def finite_logprob(logprob: float) -> float:
    """Return the log-probability, or ``LEAST`` for less."""
    return logprob if logprob > LEAST else LEAST
