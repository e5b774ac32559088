"""A tree of guesses by somebody who says how likely each is. It grows while it is guessed; the likeliest nodes are verified.

Li et al., 2024 (EAGLE-2, arXiv 2406.16858): what a guesser says of its guesses is about how often they are accepted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hasten.core.draft import Draft
from hasten.decoding.step_costs import StepCosts

RANKS = 4  # choices of a place that are guessed


class Node(NamedTuple):
    token_id: int
    parent: int  # its place among the nodes; -1: the line's last token
    depth: int  # tokens after the line's last one, from 1
    chance: float  # that it becomes output, by what the guesser says


@dataclass(slots=True)
class GrowingTree:
    nodes: list[Node] = field(default_factory=list)

    def depth(self, node: int) -> int:
        """Of a node; 0 for -1, the line's last token."""
        return 0 if node < 0 else self.nodes[node].depth

    def add(self, parent: int, choices: Iterable[tuple[int, float]]) -> range:
        """What may follow ``parent``: tokens, and how likely each is there. Returns their places."""
        first, depth = len(self.nodes), self.depth(parent) + 1
        before = 1.0 if parent < 0 else self.nodes[parent].chance
        self.nodes += [Node(token_id, parent, depth, before * chance) for token_id, chance in choices]
        return range(first, len(self.nodes))

    def likeliest(self, count: int) -> list[int]:
        """So many nodes, the likeliest first; none is likelier than its parent. Not those that are nothing (0, NaN)."""
        order = sorted((-node.chance, i) for i, node in enumerate(self.nodes) if node.chance > 0.0)
        return [i for _, i in order[:count]]

    def draft(self, num_tokens: int) -> Draft:
        """Of the likeliest nodes."""
        order = self.likeliest(num_tokens)
        place = {-1: -1} | {node: i for i, node in enumerate(order)}
        kept = [self.nodes[node] for node in order]
        return Draft(tuple(node.token_id for node in kept), tuple(place[node.parent] for node in kept))


def worthwhile(trees: Sequence[GrowingTree], most: int, costs: StepCosts, spent: float) -> list[Draft]:
    """Of each tree at most ``most`` nodes: together those with which the step that verifies them gives the most tokens a second.

    ``spent``: seconds that went into guessing.
    """
    found = [(tree.nodes[node].chance, line) for line, tree in enumerate(trees) for node in tree.likeliest(most)]
    found.sort(key=lambda pair: -pair[0])
    taken, _ = costs.best(len(trees), [chance for chance, _ in found], spent)
    counts = [0] * len(trees)
    for _, line in found[:taken]:
        counts[line] += 1
    return [tree.draft(count) for tree, count in zip(trees, counts, strict=True)]
