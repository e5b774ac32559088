"""``selectors``: the series that a PromQL expression asks for. Enough of the language for dashboards and alerts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

_LABEL_LISTS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_SELECTOR = re.compile(r"(?<![\w:.])([a-zA-Z_:][\w:]*)\s*(\{(?:[^{}\"]|\"(?:[^\"\\]|\\.)*\")*\})?(?!\s*\()(?![\w:])")
_MATCHER = re.compile(r"(\w+)\s*(=~|!~|!=|=)\s*\"((?:[^\"\\]|\\.)*)\"")
_KEYWORDS = frozenset({"and", "or", "unless", "bool", "offset", "by", "without", "on", "ignoring", "inf", "nan"})
_RANGES = re.compile(r"\[[^\]]*\]|\boffset\s+-?\w+")


class Selector(NamedTuple):
    name: str
    matchers: tuple[tuple[str, str, str], ...]  # label, operator, value

    def matches(self, name: str, labels: Mapping[str, str]) -> bool:
        return name == self.name and all(_accepts(labels.get(label, ""), op, value) for label, op, value in self.matchers)


def _accepts(found: str, operator: str, value: str) -> bool:
    equal = re.fullmatch(value, found) is not None if "~" in operator else found == value
    return equal is not operator.startswith("!")


def selectors(expression: str) -> list[Selector]:
    """Return the selectors of an expression, in order."""
    text = _LABEL_LISTS.sub(" ", _RANGES.sub(" ", expression))
    return [
        Selector(name, tuple(_MATCHER.findall(matchers)))
        for name, matchers in _SELECTOR.findall(text)
        if name.lower() not in _KEYWORDS
    ]


def missing(expression: str, samples: Iterable[tuple[str, Mapping[str, str]]]) -> list[Selector]:
    """Return the selectors of an expression that no sample has."""
    known: Sequence[tuple[str, Mapping[str, str]]] = list(samples)
    return [each for each in selectors(expression) if not any(each.matches(name, labels) for name, labels in known)]
