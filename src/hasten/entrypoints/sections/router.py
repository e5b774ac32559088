"""``route``: whether a question suits sections that are written without each other.

The router sums weights of the question's features (``question_features``), in English and Chinese. The weights are a logistic
regression over labelled questions (``benchmarks/train_router.py``). A question suits if its answer falls into points that do not
need each other: a list, a comparison, advice, an overview. One train of thought, one piece of writing, a short fact and small talk
do not. Plain decoding is right for every question, sections only for some (Ning et al., 2023, section 5, train a language model).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hasten.entrypoints.sections.question_features import question_features

MAX_READ = 500  # characters: the beginning and the end of a longer text, where the request stands
_NUM_NAMED = 3  # words that a reason quotes
_LONGEST_NAMED = 24  # characters of a quoted word


@dataclass(frozen=True, slots=True)
class Route:
    suits: bool  # whether the router chooses sections
    reason: str
    forced: bool = False  # the caller chose sections, whatever the router says


class RouterWeights(NamedTuple):
    """A sum of ``bias`` and the weights of a question's features above 0 chooses sections."""

    bias: int
    weights: Mapping[str, int]  # hundredths of the log-odds


@functools.cache
def router_weights() -> RouterWeights:
    """Return the trained weights, read once."""
    found = json.loads(Path(__file__).with_name("router_weights.json").read_text(encoding="utf-8"))
    return RouterWeights(found["bias"], found["weights"])


def route(question: str) -> Route:
    """Return whether the question suits sections, and which of its words count most for that."""
    bias, weights = router_weights()
    half = MAX_READ // 2
    text = question if len(question) <= MAX_READ else f"{question[:half]}\n{question[-half:]}"
    evidence = [(weight, words) for name, words in question_features(text).items() if (weight := weights.get(name))]
    suits = bias + sum(weight for weight, _ in evidence) > 0
    named = _heaviest(evidence if suits else [(-weight, words) for weight, words in evidence])
    wording = "its wording is that of a list of points" if suits else "its wording is that of one connected or short answer"
    return Route(suits, f"{wording}: {', '.join(f'“{words}”' for words in named)}" if named else wording)


def _heaviest(evidence: list[tuple[int, str]]) -> list[str]:
    """Return the words with the largest positive weights, none within another."""
    named: list[str] = []
    for weight, words in sorted(evidence, key=lambda each: -each[0]):
        if weight > 0 and any(map(str.isalnum, words)) and not any(words in other or other in words for other in named):
            named.append(words[:_LONGEST_NAMED])
            if len(named) == _NUM_NAMED:
                break
    return named
