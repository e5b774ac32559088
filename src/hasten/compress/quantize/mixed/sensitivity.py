"""``Sensitivities``: the KL of each layer quantised alone, and the best assignments by prediction.

The prediction adds up the KL of layers. On language models it is within some 10 % where the KL is small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from hasten.compress.quantize.mixed.allocation import Option, minimize
from hasten.compress.quantize.mixed.assignment import LayerChoice, ModelBytes
from hasten.compress.quantize.mixed.kl_estimate import KlEstimate
from hasten.compress.quantize.mixed.kl_evaluator import UNQUANTIZED

Evaluate = Callable[[tuple[int, ...]], KlEstimate]  # the bits of all layers -> KL


@dataclass(frozen=True, slots=True)
class Sensitivities:
    layers: tuple[tuple[LayerChoice, ...], ...]  # of each layer, by rising bits
    sizes: ModelBytes

    @classmethod
    def measure(cls, evaluate: Evaluate, sizes: ModelBytes) -> Sensitivities:
        """Evaluate each layer alone with each of its bits."""
        count = len(sizes.layers)
        return cls(
            tuple(
                tuple(
                    LayerChoice(
                        bits, layer[bits], evaluate((UNQUANTIZED,) * index + (bits,) + (UNQUANTIZED,) * (count - index - 1))
                    )
                    for bits in sorted(layer)
                )
                for index, layer in enumerate(sizes.layers)
            ),
            sizes,
        )

    def predict(self, bits: Sequence[int]) -> float:
        """Return the sum of the layers' KL."""
        return sum(self._kl(index, number) for index, number in enumerate(bits))

    def least_bytes(self, max_kl: float) -> tuple[int, ...] | None:
        """Return the assignment of the least bytes with a predicted KL of at most ``max_kl``."""
        options = [[Option(choice.num_bytes, choice.kl.mean) for choice in layer] for layer in self.layers]
        largest = sum(max(choice.kl.mean for choice in layer) for layer in self.layers)
        return self._bits(minimize(options, min(max_kl, 2 * largest)))

    def least_kl(self, num_bytes: int) -> tuple[int, ...] | None:
        """Return the assignment of the least predicted KL with at most ``num_bytes`` in the file."""
        options = [[Option(choice.kl.mean, choice.num_bytes) for choice in layer] for layer in self.layers]
        return self._bits(minimize(options, num_bytes - self.sizes.others))

    def neighbors(self, bits: tuple[int, ...], max_bytes: int) -> list[tuple[int, ...]]:
        """Return the assignments that differ in at most two layers, by rising predicted KL.

        Their files have at most ``max_bytes``.
        """
        size, changes = self.sizes.total(bits), list(self._changes(bits))
        moves = [(change,) for change in changes] + [pair for pair in combinations(changes, 2) if pair[0].index != pair[1].index]
        fitting = [move for move in moves if size + sum(change.num_bytes for change in move) <= max_bytes]
        fitting.sort(key=lambda move: sum(change.kl for change in move))
        return [_changed(bits, move) for move in fitting]

    def _changes(self, bits: tuple[int, ...]) -> Iterator[_Change]:
        for index, (layer, now) in enumerate(zip(self.layers, bits, strict=True)):
            for choice in layer:
                if choice.bits != now:
                    num_bytes = choice.num_bytes - self.sizes.layers[index][now]
                    yield _Change(index, choice.bits, num_bytes, choice.kl.mean - self._kl(index, now))

    def _kl(self, index: int, bits: int) -> float:
        return next(choice.kl.mean for choice in self.layers[index] if choice.bits == bits)

    def _bits(self, indices: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if indices is None:
            return None
        return tuple(layer[index].bits for layer, index in zip(self.layers, indices, strict=True))


@dataclass(frozen=True, slots=True)
class _Change:
    """Other bits for one layer, and what they add."""

    index: int
    bits: int
    num_bytes: int
    kl: float


def _changed(bits: tuple[int, ...], move: tuple[_Change, ...]) -> tuple[int, ...]:
    changes = {change.index: change.bits for change in move}
    return tuple(changes.get(index, number) for index, number in enumerate(bits))
