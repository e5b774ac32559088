"""``DraftTree``: a growing draft of one sequence, with each node's acceptance probability.

Li et al., 2024 (EAGLE-2, arXiv 2406.16858): a drafter's probabilities tell which nodes are worth expanding and verifying.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hasten.core.draft import Draft
from hasten.speculative.acceptance_calibration import AcceptanceCalibration, log_odds_bin

RANKS = 4  # alternatives that are proposed for one position


class Node(NamedTuple):
    token_id: int
    parent: int  # index of a node; -1: the sequence's last token
    depth: int  # from 1
    acceptance_prob: float  # of the node and all before it
    keys: tuple[Hashable, ...]  # its kind for ``AcceptanceCalibration``; empty: its outcome teaches nothing


ROOT = Node(-1, -1, 0, 1.0, ())  # the sequence's last token


@dataclass(slots=True)
class DraftTree:
    calibration: AcceptanceCalibration = field(default_factory=AcceptanceCalibration)
    nodes: list[Node] = field(default_factory=list)
    frontier: list[int] = field(default_factory=lambda: [-1])  # nodes of one depth that the drafter expands next

    @property
    def frontier_depth(self) -> int:
        return (self.nodes[self.frontier[0]] if self.frontier[0] >= 0 else ROOT).depth

    def prune_frontier(self, min_probability: float) -> None:
        """Stop expanding less likely nodes. The sequence's last token stays."""
        self.frontier = [i for i in self.frontier if i < 0 or self.nodes[i].acceptance_prob >= min_probability]

    def add(self, parent: int, token_id: int, keys: tuple[Hashable, ...], prior: float) -> int:
        """Add a node and return its index. ``prior``: its probability before its keys have outcomes."""
        above = self.nodes[parent] if parent >= 0 else ROOT
        probability = above.acceptance_prob * self.calibration.probability(keys, prior)
        self.nodes.append(Node(token_id, parent, above.depth + 1, probability, keys))
        return len(self.nodes) - 1

    def add_choices(self, parent: int, choices: Iterable[tuple[int, float]], source: Hashable = None) -> range:
        """Add (token, draft probability) choices after ``parent``, best first, of one ``source``."""
        first = len(self.nodes)
        for rank, (token_id, draft_prob) in enumerate(choices):
            keys = ((source, rank > 0, log_odds_bin(draft_prob)),) if draft_prob > 0.0 else ()
            self.add(parent, token_id, keys, draft_prob)
        return range(first, len(self.nodes))

    def record_acceptance(self, token_ids: Sequence[int]) -> None:
        """Count the outcome of every node that the output reached. ``token_ids``: how the sequence went on."""
        path = -1
        for token_id in token_ids:
            accepted = None
            for i, node in enumerate(self.nodes):
                if node.parent == path:
                    self.calibration.record(node.keys, accepted=node.token_id == token_id)
                    accepted = i if node.token_id == token_id else accepted
            if accepted is None:
                return
            path = accepted

    def top_nodes(self, count: int) -> list[int]:
        """Return the most likely nodes, best first, parents before children, none of probability 0."""
        order = sorted((-node.acceptance_prob, i) for i, node in enumerate(self.nodes) if node.acceptance_prob > 0.0)
        return [i for _, i in order[:count]]

    def draft(self, nodes: Sequence[int]) -> Draft:
        """Return these nodes as a draft. Parents come first."""
        index = {-1: -1} | {node: i for i, node in enumerate(nodes)}
        kept = [self.nodes[node] for node in nodes]
        probabilities = tuple(node.acceptance_prob for node in kept)
        return Draft(tuple(n.token_id for n in kept), tuple(index[n.parent] for n in kept), acceptance_probs=probabilities)
