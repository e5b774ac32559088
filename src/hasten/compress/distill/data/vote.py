"""Which of several answers to one prompt is best.

By the majority of the final answers (self-consistency: Wang et al., 2023, arXiv 2203.11171), by the teacher's mean log-probability,
or by a score of the user's function.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hasten.core.errors import InvalidOption, show

ANSWER = r"(?im)^[*\s]*answer[*\s]*:[*\s]*(\S.*?)[*\s]*$"  # "Answer: 42", also in bold


@dataclass(frozen=True, slots=True)
class Answer:
    """One of several answers to a prompt."""

    text: str
    final: str | None  # the final answer as it is written; None: it has none
    logprob: float  # of the text, per token


@dataclass(frozen=True, slots=True)
class Vote:
    """The best answer by index, its score, and the votes by final answer, most first."""

    index: int
    score: float
    votes: dict[str, int]


def read_pattern(pattern: str | None) -> re.Pattern[str] | None:
    """Return a compiled pattern. Raises ``InvalidOption``."""
    try:
        return None if pattern is None else re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InvalidOption(
            "the answer pattern is no regular expression", got=show(pattern), remedy=f"Correct it: {error}"
        ) from None


def final_answer(text: str, pattern: re.Pattern[str] | None) -> str | None:
    """Return what the last match of the pattern has in its first group, or as a whole.

    Without a pattern: what stands after the last "Answer:", or else the last line. None if there is no match or it is blank.
    """
    found = list((pattern or re.compile(ANSWER)).finditer(text))
    if found:
        match = found[-1]
        answer = match[1] if match.re.groups else match[0]
    else:
        answer = "" if pattern is not None else next((line for line in reversed(text.splitlines()) if line.strip()), "")
    return (answer or "").strip() or None


def normalized(answer: str) -> str:
    """Return a final answer as votes count it: without case, white space at its ends, and a full stop."""
    return " ".join(answer.casefold().split()).rstrip(".。")


def by_majority(answers: Sequence[Answer]) -> Vote | None:
    """Return the most likely text with the most frequent final answer.

    The score is the share of its votes. Of equally frequent ones, the one that came first wins. None if no text has a final answer.
    """
    finals = [None if answer.final is None else normalized(answer.final) for answer in answers]
    votes = Counter(final for final in finals if final is not None)
    if not votes:
        return None
    ranked = dict(votes.most_common())
    winner = next(iter(ranked))
    index = max((i for i, final in enumerate(finals) if final == winner), key=lambda i: (answers[i].logprob, -i))
    return Vote(index, ranked[winner] / len(answers), ranked)


def by_score(answers: Sequence[Answer], scores: Sequence[float]) -> Vote | None:
    """Return the answer with the highest score, the first of equal ones. None without answers."""
    if not answers:
        return None
    best = by_majority(answers)
    index = max(range(len(answers)), key=lambda i: (scores[i], -i))
    return Vote(index, scores[index], {} if best is None else best.votes)
