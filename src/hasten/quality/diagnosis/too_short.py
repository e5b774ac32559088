"""Too short: an output that stopped before it answered.

That is an empty one, an announcement with nothing after it, or far less than the length that the prompt asks for.
"""

from __future__ import annotations

import re

from hasten.quality.diagnosis.asked_length import asked_length, count_units
from hasten.quality.diagnosis.observed import NOTHING, Measurement, ObservedOutput

MIN_SHARE = 0.5  # of the length that was asked for
_CODE = re.compile(r"^\s*(?:def|class|if|elif|else|for|while|try|except|finally|with|match|case|switch|default|async)\b")
_WORD = re.compile(r"[\u2e80-\u9fff]|[^\W\d_\u2e80-\u9fff]{2,}")
MIN_TOKENS = 16  # which, without a text, are no empty output
MIN_ANNOUNCEMENT = 3  # words before the colon


def measure_too_short(output: ObservedOutput) -> Measurement:
    """Return the share of the answer that is missing: 1 for an empty one."""
    text = output.text.strip()
    if not text and len(output.token_ids) >= MIN_TOKENS:  # of a model without a tokenizer
        return NOTHING
    if not text:
        return Measurement(value=1.0, is_fault=True, kind="empty", offset=0)
    if output.finish_reason == "length":
        return NOTHING
    if _only_announces(text):
        return Measurement(value=1.0, is_fault=True, kind="announcement", offset=len(output.text), details={"end": text[-60:]})
    asked = asked_length(output.prompt)
    if asked is None or asked.low is None:
        return NOTHING
    count = count_units(text, asked.unit)
    missing = max(0.0, 1 - count / asked.low)
    return Measurement(
        value=missing,
        is_fault=count < MIN_SHARE * asked.low,
        kind="asked",
        offset=len(output.text),
        details={"count": count, "asked": asked.low, "unit": asked.unit},
    )


def _only_announces(text: str) -> bool:
    """Whether one line ends with the colon that a list or a text should follow."""
    if not text.endswith((":", "：")) or text.endswith("::") or "\n" in text or _CODE.match(text):
        return False
    return len(_WORD.findall(text)) >= MIN_ANNOUNCEMENT
