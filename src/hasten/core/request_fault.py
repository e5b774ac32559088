"""``is_request_fault``: whether the settings of its request made an output fail."""

from __future__ import annotations

NO_TOKEN = "the settings of this request leave no token to choose: its masks, bias and penalties forbid all of them"
GRAMMAR_ENDED = "the grammar of structured_outputs cannot go on"  # how such an error begins


def is_request_fault(error: str | None) -> bool:
    """Return whether ``RequestOutput.error`` is the caller's to correct."""
    return error is not None and error.startswith((NO_TOKEN, GRAMMAR_ENDED))
