"""``Formula``: a sum of products of named numbers. Its text and its value come from one place."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

Factor = tuple[str, int]  # symbol, number


@dataclass(frozen=True, slots=True)
class Formula:
    terms: tuple[tuple[Factor, ...], ...] = ()

    @classmethod
    def product(cls, *factors: Factor) -> Formula:
        return cls((factors,))

    def __add__(self, other: Formula) -> Formula:
        return Formula(self.terms + other.terms)

    @property
    def value(self) -> int:
        return sum(math.prod(number for _, number in term) for term in self.terms)

    def symbols(self) -> str:
        """Return the formula in symbols, such as ``L·b·s·h·f``. ``0`` if it has no term."""
        return _joined("·".join(_grouped(symbol) for symbol, _ in term) for term in self.terms)

    def numbers(self) -> str:
        """Return the formula with its numbers filled in, such as ``28·512·1,024``."""
        return _joined("·".join(f"{number:,}" for _, number in term) for term in self.terms)


def _grouped(symbol: str) -> str:
    """Return the symbol as a factor: a sum that is not in parentheses gets them."""
    depth = 0
    for index, character in enumerate(symbol):
        depth += (character == "(") - (character == ")")
        if depth == 0 and symbol[index : index + 3] in (" + ", " - "):
            return f"({symbol})"
    return symbol


def _joined(terms: Iterable[str]) -> str:
    return " + ".join(terms) or "0"
