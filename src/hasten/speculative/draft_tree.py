"""A tree of guesses by somebody who says how likely each is. It grows while it is guessed; the likeliest nodes are verified.

Li et al., 2024 (EAGLE-2, arXiv 2406.16858): what a guesser says of its guesses tells how often they are accepted. How, shows while
they are judged (``Trust``).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hasten.core.draft import Draft
from hasten.speculative.trust import Trust

RANKS = 4  # choices of a place that are guessed


class Node(NamedTuple):
    token_id: int
    parent: int  # its place among the nodes; -1: the line's last token
    depth: int  # tokens after the line's last one, from 1
    chance: float  # that it becomes output
    kind: Hashable = None  # of guess, as ``Trust`` tells them apart
    said: float = 0.0  # by the guesser: how likely it is where its parent is right


@dataclass(slots=True)
class DraftTree:
    trust: Trust = field(default_factory=Trust)
    nodes: list[Node] = field(default_factory=list)
    tips: list[int] = field(default_factory=lambda: [-1])  # nodes of one depth that the guesser goes on from

    @property
    def height(self) -> int:
        """Of the tips: tokens between the line's last one and what comes after them."""
        return self.depth(self.tips[0])

    def prune(self, least: float) -> None:
        """Not to go on from what is less likely. The line's last token is no guess."""
        self.tips = [tip for tip in self.tips if tip < 0 or self.nodes[tip].chance >= least]

    def depth(self, node: int) -> int:
        """Of a node; 0 for -1, the line's last token."""
        return 0 if node < 0 else self.nodes[node].depth

    def add(self, parent: int, choices: Iterable[tuple[int, float]], source: Hashable = None, rank: int = 0) -> range:
        """What may follow ``parent``: tokens, and how likely each is said to be there. Returns their places.

        The first of them is the guesser's choice of this ``rank`` in that place, 0 its first one; ``source`` tells guesses apart
        that are made, or meant, in different ways.
        """
        first, depth = len(self.nodes), self.depth(parent) + 1
        before = 1.0 if parent < 0 else self.nodes[parent].chance
        for place, (token_id, said) in enumerate(choices, start=rank):
            kind = source, place > 0
            self.nodes.append(Node(token_id, parent, depth, before * self.trust.chance(kind, said), kind, said))
        return range(first, len(self.nodes))

    def judge(self, token_ids: Sequence[int]) -> None:
        """The text went on with these: wherever it came to a guess, ``trust`` learns whether that was right."""
        path = -1
        for token_id in token_ids:
            reached = [node for node, guess in enumerate(self.nodes) if guess.parent == path]
            for node in reached:
                guess = self.nodes[node]
                self.trust.note(guess.kind, guess.said, right=guess.token_id == token_id)
            right = [node for node in reached if self.nodes[node].token_id == token_id]
            if not right:
                return
            path = right[0]

    def likeliest(self, count: int) -> list[int]:
        """So many nodes, the likeliest first; none is likelier than its parent. Not those that are nothing (0, NaN)."""
        order = sorted((-node.chance, i) for i, node in enumerate(self.nodes) if node.chance > 0.0)
        return [i for _, i in order[:count]]

    def draft(self, nodes: Sequence[int]) -> Draft:
        """Of these, parents first."""
        place = {-1: -1} | {node: i for i, node in enumerate(nodes)}
        kept = [self.nodes[node] for node in nodes]
        return Draft(tuple(node.token_id for node in kept), tuple(place[node.parent] for node in kept))
