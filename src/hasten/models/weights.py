"""Which checkpoint tensor fills which rows of which parameter: a table that is read forwards to load and backwards to save."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WeightSource:
    """Checkpoint tensor ``name`` is rows ``rows`` of parameter ``target``; stored [in, out] when ``transposed``."""

    name: str
    target: str  # as in ``Decoder.named_parameters()``
    rows: tuple[int, int] | None = None  # [a, b); None: all
    transposed: bool = False


WeightMap = tuple[WeightSource, ...]


def fused(names: tuple[str, ...], sizes: tuple[int, ...], target: str) -> WeightMap:
    """Tensors that lie one after the other in one parameter."""
    sources, start = [], 0
    for name, size in zip(names, sizes, strict=True):
        sources.append(WeightSource(name, target, (start, start + size)))
        start += size
    return tuple(sources)
