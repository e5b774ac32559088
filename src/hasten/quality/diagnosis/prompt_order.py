"""Prompt order: prompts share text that the prefix cache cannot use, as what varies stands before.

A prefix cache reuses the beginning that two prompts have in common and nothing after the first difference.
"""

from __future__ import annotations

from collections.abc import Sequence

from hasten.quality.diagnosis.observed import NOTHING, Measurement

MAX_PROMPTS = 64
MAX_UNITS = 1 << 14  # characters or tokens of each prompt
CHARACTER_WINDOW = 48  # unrelated texts have shorter parts in common
TOKEN_WINDOW = 16
BLOCK = 16  # units by which a common beginning grows
MIN_SHARE = 0.3  # of the prompts after the first


def measure_prompt_order(prompts: Sequence[str] | Sequence[Sequence[int]]) -> Measurement:
    """Return the share of the prompts that earlier ones have too, but not as their beginning.

    Texts are compared by character, token ids by token.
    """
    seen: set[int] = set()
    beginnings: set[int] = set()
    num_shared = num_prefix = total = 0
    for number, prompt in enumerate(prompts[:MAX_PROMPTS]):
        units = prompt[:MAX_UNITS] if isinstance(prompt, str) else tuple(prompt[:MAX_UNITS])
        size = CHARACTER_WINDOW if isinstance(units, str) else TOKEN_WINDOW
        windows = [hash(units[begin : begin + size]) for begin in range(len(units) - size + 1)]
        blocks = [hash(units[:end]) for end in range(BLOCK, len(units) + 1, BLOCK)]
        if number:
            prefix = BLOCK * next((index for index, block in enumerate(blocks) if block not in beginnings), len(blocks))
            prefix = prefix if prefix >= size else 0
            num_shared += max(prefix, _covered([window in seen for window in windows], size))
            num_prefix += prefix
            total += len(units)
        seen.update(windows)
        beginnings.update(blocks)
    if not total:
        return NOTHING
    share = (num_shared - num_prefix) / total
    details = {"share": share, "shared": num_shared / total, "prefix": num_prefix / total}
    return Measurement(value=share, is_fault=share >= MIN_SHARE, kind="order", details=details)


def _covered(found: Sequence[bool], size: int) -> int:
    """Return how many units lie in a window that was found."""
    count = end = 0
    for begin, is_found in enumerate(found):
        if is_found:
            count += begin + size - max(begin, end)
            end = begin + size
    return count
