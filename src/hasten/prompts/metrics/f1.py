"""``f1``: the F1 score of the tokens that output and reference share (SQuAD: Rajpurkar et al., 2016).

Texts are compared in lower case, without ASCII punctuation and the articles a, an, the, as the authors' program does. Two things
are added for Chinese and Japanese, which separate no words: each of their characters is a token, and their punctuation is removed.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hasten.prompts.metric import Attempt, ItemScore

if TYPE_CHECKING:
    from hasten.entrypoints.llm import LLM

ARGUMENT: str | None = None
_REMOVED = str.maketrans("", "", string.punctuation + "。，、；：？！…“”‘’《》〈〉「」『』（）【】")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\s\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")


def make_metric(argument: str | None) -> F1:
    return F1()


@dataclass(frozen=True, slots=True)
class F1:
    name: str = "f1"
    identity: str = "f1"
    needs_output: bool = True
    low: float = 0.0
    high: float = 1.0
    is_binary: bool = False

    def score(self, attempt: Attempt, llm: LLM) -> ItemScore:
        """Return the F1 score against the reference that fits best."""
        assert attempt.output is not None
        return ItemScore(max(token_f1(attempt.output, reference) for reference in attempt.item.references))

    def close(self) -> None:
        pass


def token_f1(output: str, reference: str) -> float:
    """Return the F1 score of two texts; where one has no token, 1 if both have none, else 0."""
    found, expected = _tokens(output), _tokens(reference)
    if not found or not expected:
        return float(found == expected)
    num_shared = sum((Counter(found) & Counter(expected)).values())
    return 2 * num_shared / (len(found) + len(expected))


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(_ARTICLES.sub(" ", text.lower().translate(_REMOVED)))
