"""Diversity: the examples that cover the embeddings of all.

The method is k-center greedy (Sener and Savarese, 2018).

Shape suffixes: N examples · E size of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def k_center_greedy(embeddings_NE: Tensor, count: int, tick: Callable[[], None] = lambda: None) -> list[int]:
    """Return ``count`` examples, each of which is the farthest from those before it.

    The first one is example 0. Embeddings have length 1. The largest distance of any example from a chosen one is at most twice
    the least possible (Gonzalez, 1985). Of equal distances the first example's counts. ``tick`` is called after every choice; it
    may raise.
    """
    chosen: list[int] = []
    # Cosine similarity to the nearest chosen example.
    nearest_N = torch.full((len(embeddings_NE),), -torch.inf, dtype=torch.float32, device="cpu")
    index = 0
    while len(chosen) < min(count, len(embeddings_NE)):
        chosen.append(index)
        nearest_N = torch.maximum(nearest_N, embeddings_NE @ embeddings_NE[index])
        nearest_N[index] = torch.inf
        index = int(nearest_N.argmin())
        tick()
    return chosen
