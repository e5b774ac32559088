"""Which tree of guesses to verify, where several places are guessed independently: each place's likeliest tokens, ranked.

Cai et al., 2024 (Medusa, arXiv 2401.10774, section 2.3.3): a node's chance is the product of the accuracies along its path, and
the best tree of n nodes is the n likeliest paths. As no path is likelier than its beginning, that is a tree, and its first nodes
are the best smaller one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from hasten.core.draft import MAX_TREE_TOKENS


@dataclass(frozen=True, slots=True)
class StaticTree:
    """Node i guesses the token of rank ``ranks[i]`` at place ``depths[i]`` (from 0), after node ``parents[i]``."""

    depths: tuple[int, ...]
    ranks: tuple[int, ...]
    parents: tuple[int, ...]

    @classmethod
    def best(cls, accuracies: Sequence[Sequence[float]], num_nodes: int = MAX_TREE_TOKENS) -> StaticTree:
        """``accuracies[place][rank]``: how often that guess is right where all before it are. Likeliest nodes first."""
        depths: list[int] = []
        ranks: list[int] = []
        parents: list[int] = []
        open_nodes = [(-chance, rank, -1) for rank, chance in enumerate(accuracies[0])]  # (-chance, rank, parent)
        heapify(open_nodes)
        while open_nodes and len(parents) < num_nodes and open_nodes[0][0] < 0:
            negative, rank, parent = heappop(open_nodes)
            depth = depths[parent] + 1 if parent >= 0 else 0
            node = len(parents)
            depths.append(depth)
            ranks.append(rank)
            parents.append(parent)
            if depth + 1 < len(accuracies):
                for following, chance in enumerate(accuracies[depth + 1]):
                    heappush(open_nodes, (negative * chance, following, node))
        return cls(tuple(depths), tuple(ranks), tuple(parents))
