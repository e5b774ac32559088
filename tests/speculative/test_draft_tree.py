"""``DraftTree``: acceptance, path probabilities, and the draft of the best nodes."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence

import pytest

from hasten.core.draft import Draft
from hasten.speculative.acceptance_calibration import AcceptanceCalibration
from hasten.speculative.draft_tree import DraftTree


class RecordingCalibration(AcceptanceCalibration):
    def __init__(self) -> None:
        super().__init__()
        self.outcomes: list[tuple[object, bool]] = []

    def record(self, keys: Sequence[Hashable], *, accepted: bool) -> None:
        self.outcomes.append((keys, accepted))


@pytest.mark.parametrize("seed", range(40))
def test_acceptance_is_recorded_for_every_node_that_the_output_reaches(seed: int) -> None:
    draw = random.Random(seed)
    calibration = RecordingCalibration()
    tree, paths = DraftTree(calibration), [()]
    for _ in range(draw.randint(0, 6)):
        parent = draw.randrange(-1, len(tree.nodes))
        used = {node.token_id for node in tree.nodes if node.parent == parent}
        tokens = draw.sample([token for token in range(6) if token not in used], 2)
        tree.add_choices(parent, [(token, draw.random()) for token in tokens], source=draw.choice("ab"))
        paths += [(*paths[parent + 1], token) for token in tokens]
    output = [draw.randrange(6) for _ in range(draw.randint(0, 4))]
    tree.record_acceptance(output)
    reached = [
        (node.keys, path[-1] == output[len(path) - 1])
        for node, path in zip(tree.nodes, paths[1:], strict=True)
        if len(path) <= len(output) and list(path[:-1]) == output[: len(path) - 1]
    ]
    assert sorted(calibration.outcomes, key=repr) == sorted(reached, key=repr)


def test_first_choices_and_alternatives_are_calibrated_apart() -> None:
    calibration = AcceptanceCalibration()
    for _ in range(100):
        tree = DraftTree(calibration)
        tree.add_choices(-1, [(1, 0.2), (2, 0.2)])
        tree.record_acceptance([1])
    tree = DraftTree(calibration)
    tree.add_choices(-1, [(5, 0.2), (6, 0.2)])
    tree.add_choices(0, [(7, 0.2)])
    first, alternative, child = (node.acceptance_prob for node in tree.nodes)
    assert first > 0.9 and alternative < 0.1 and child == pytest.approx(first * first)


def test_the_best_nodes_make_a_draft_with_probabilities_that_never_rise() -> None:
    tree = DraftTree()
    tree.add_choices(-1, [(7, 0.6), (9, 0.3)])
    tree.add_choices(0, [(4, 0.9), (5, 0.1)])
    draft = tree.draft(tree.top_nodes(3))
    assert draft == Draft((7, 4, 9), (-1, 0, -1))
    assert draft.acceptance_probs == pytest.approx((0.6, 0.54, 0.3))
    assert draft.truncate(2).acceptance_probs == pytest.approx((0.6, 0.54))
    assert draft.truncate(9, max_depth=1).acceptance_probs == pytest.approx((0.6, 0.3))


def test_unlikely_nodes_leave_the_frontier_and_the_last_token_stays() -> None:
    tree = DraftTree()
    tree.prune_frontier(2.0)
    assert tree.frontier == [-1] and tree.frontier_depth == 0
    tree.frontier = list(tree.add_choices(-1, [(7, 0.6), (9, 0.3)]))
    assert tree.frontier_depth == 1
    tree.prune_frontier(0.5)
    assert tree.frontier == [0]
