"""A tree of guesses by somebody who says how likely each is. It grows while it is guessed; the likeliest nodes are verified.

Li et al., 2024 (EAGLE-2, arXiv 2406.16858): what a guesser says of its guesses tells how often they are accepted. How, shows while
they are judged (``Trust``).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hasten.core.draft import Draft
from hasten.decoding.drafters.base import Line
from hasten.decoding.pace import Pace
from hasten.decoding.step_costs import StepCosts
from hasten.decoding.trust import Trust

RANKS = 4  # choices of a place that are guessed


class Node(NamedTuple):
    token_id: int
    parent: int  # its place among the nodes; -1: the line's last token
    depth: int  # tokens after the line's last one, from 1
    chance: float  # that it becomes output
    kind: Hashable = None  # of guess, as ``Trust`` tells them apart
    said: float = 0.0  # by the guesser: how likely it is where its parent is right


@dataclass(slots=True)
class GrowingTree:
    trust: Trust = field(default_factory=Trust)
    nodes: list[Node] = field(default_factory=list)

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


@dataclass(slots=True)
class Grove:
    """The trees of a guesser's last round, by which it is judged."""

    trust: Trust = field(default_factory=Trust)
    _trees: dict[int, tuple[int, GrowingTree]] = field(default_factory=dict)  # line -> its length then, and its tree

    def plant(self, line: Line) -> GrowingTree:
        tree = GrowingTree(self.trust)
        self._trees[line.sequence_id] = len(line.token_ids), tree
        return tree

    def judge(self, lines: Iterable[Line]) -> None:
        """By what has become of the lines since. Those that are not here are forgotten."""
        trees, self._trees = self._trees, {}
        for line in lines:
            if line.sequence_id in trees:
                length, tree = trees[line.sequence_id]
                tree.judge(line.token_ids[length:])


@dataclass(frozen=True, slots=True)
class Growth:
    """The trees of a round while they grow, a call of their guesser at a time, and what that costs."""

    trees: Sequence[GrowingTree]
    most: int  # nodes of each that are verified
    costs: StepCosts
    pace: Pace  # of the guesser

    def least(self, num_active: int, calls: int) -> float:
        """``doubt`` of the trees that are still growing, so many, after so many calls for guesses."""
        call = self.pace.seconds(num_active) or 0.0
        return doubt(self.trees, self.most, self.costs, calls * call, call / num_active)

    def drafts(self, calls: int) -> list[Draft]:
        """What is ``worthwhile`` of each tree, after so many calls for guesses."""
        return worthwhile(self.trees, self.most, self.costs, calls * (self.pace.seconds(len(self.trees)) or 0.0))


def doubt(trees: Sequence[GrowingTree], most: int, costs: StepCosts, spent: float, call: float) -> float:
    """How likely a node has to be for a guess after it to be worth its row and ``call`` seconds of guessing, were that one sure.

    ``most`` and ``spent`` as below. What is likelier is gone on from: nobody knows how sure the guess after it is.
    """
    chances = sorted((tree.nodes[node].chance for tree in trees for node in tree.likeliest(most)), reverse=True)
    count, rate = costs.best(len(trees), chances, spent)
    rows = len(trees) + count
    return rate * (costs.seconds(rows + 1) - costs.seconds(rows) + call)


def worthwhile(trees: Sequence[GrowingTree], most: int, costs: StepCosts, spent: float) -> list[Draft]:
    """Of each tree at most ``most`` nodes: together those with which the step that verifies them gives the most tokens a second.

    ``spent``: seconds that went into guessing.
    """
    likeliest = [tree.likeliest(most) for tree in trees]
    chances = [[tree.nodes[node].chance for node in nodes] for tree, nodes in zip(trees, likeliest, strict=True)]
    counts = costs.counts(chances, spent)
    return [tree.draft(nodes[:count]) for tree, nodes, count in zip(trees, likeliest, counts, strict=True)]
