"""``NearCopies``: whether a text is nearly an earlier one, by ROUGE-L of their words (Lin, 2004).

Self-Instruct (Wang et al., 2023) drops new instructions of 0.7 or more.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

MAX_WORDS = 2048  # of a text that are compared
_WORD = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")  # Chinese has no spaces between words


class NearCopies:
    """Texts of which no two have a ROUGE-L of ``threshold`` or more."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._by_length: dict[int, list[tuple[list[str], Counter[str]]]] = {}

    def add(self, text: str, *, always: bool = False) -> bool:
        """Add a text unless it is a near-copy, or ``always``. Return whether it was added."""
        words = words_of(text)
        counts = Counter(words)
        if not always and self._has_copy(words, counts):
            return False
        self._by_length.setdefault(len(words), []).append((words, counts))
        return True

    def _has_copy(self, words: list[str], counts: Counter[str]) -> bool:
        for length, others in self._by_length.items():
            needed = self._threshold * (len(words) + length) / 2  # words in common, in the same order
            if min(length, len(words)) < needed:
                continue
            for other, other_counts in others:
                # The common words in any order bound those in the same order.
                if (counts & other_counts).total() >= needed and rouge_l(words, other) >= self._threshold:
                    return True
        return False


def words_of(text: str) -> list[str]:
    """Return the words of a text without case, or its characters if it has no word."""
    return (_WORD.findall(text.casefold()) or list("".join(text.split())))[:MAX_WORDS]


def rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    """Return the F-measure of ROUGE-L: twice the common words over all; 1 if both are empty."""
    total = len(first) + len(second)
    return 2 * common_length(first, second) / total if total else 1.0


def common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, by bits of integers (Hyyrö, 2004)."""
    places: dict[str, int] = {}
    for index, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << index
    row = full = (1 << len(first)) - 1
    for word in second:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(first) - row.bit_count()
