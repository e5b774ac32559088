"""How far trees are expanded and which nodes are verified: nothing beats it, by brute force and by hand."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from hasten.core.draft import NO_DRAFT, Draft
from hasten.core.request import Request
from hasten.core.sampling_params import SamplingParams
from hasten.speculative.acceptance_calibration import AcceptanceCalibration
from hasten.speculative.cost_model import CostModel
from hasten.speculative.draft_tree import DraftTree
from hasten.speculative.drafters.base import DraftRequest, Expansion
from hasten.speculative.policy import TreeExpansion, min_expand_probability, select_nodes

FREE = {1: 1.0, 64: 1.0}  # seconds of steps in which further tokens cost nothing


def random_tree(draw: random.Random, num_nodes: int) -> DraftTree:
    tree, token = DraftTree(), itertools.count()
    while len(tree.nodes) < num_nodes:
        tree.add_choices(draw.randrange(-1, len(tree.nodes)), [(next(token), draw.random())])
    return tree


def random_costs(draw: random.Random) -> CostModel:
    """Rising costs, here and there by leaps."""
    times = itertools.accumulate(draw.choice((0.0, 0.02, 0.3)) * draw.random() for _ in range(12))
    return CostModel({size: 1.0 + time for size, time in enumerate(times, start=1)})


def subtrees(tree: DraftTree, max_nodes: int) -> list[tuple[int, ...]]:
    """All sets of nodes that contain the parents of their nodes."""
    sizes = range(min(max_nodes, len(tree.nodes)) + 1)
    subsets = (nodes for size in sizes for nodes in itertools.combinations(range(len(tree.nodes)), size))
    return [nodes for nodes in subsets if all(tree.nodes[node].parent in (-1, *nodes) for node in nodes)]


@pytest.mark.parametrize("seed", range(40))
def test_no_other_selection_gives_more_tokens_per_second(seed: int) -> None:
    draw = random.Random(seed)
    trees = [random_tree(draw, draw.randint(0, 5)) for _ in range(draw.randint(1, 3))]
    max_nodes, costs, draft_seconds = draw.randint(1, 5), random_costs(draw), draw.choice((0.0, 0.5))

    def rate(expected: float, count: int) -> float:
        return (len(trees) + expected) / (costs.seconds(len(trees) + count) + draft_seconds)

    drafts = select_nodes(trees, max_nodes, costs, draft_seconds)
    found = rate(sum(sum(draft.acceptance_probs) for draft in drafts), sum(map(len, drafts)))
    selections = itertools.product(*(subtrees(tree, max_nodes) for tree in trees))
    best = max(
        rate(
            sum(tree.nodes[i].acceptance_prob for tree, nodes in zip(trees, selection, strict=True) for i in nodes),
            sum(map(len, selection)),
        )
        for selection in selections
    )
    assert found == pytest.approx(best)
    assert all(len(draft) <= max_nodes for draft in drafts)


@pytest.mark.parametrize("seed", range(40))
def test_expanding_a_node_pays_exactly_where_a_certain_child_would(seed: int) -> None:
    draw = random.Random(seed)
    trees = [random_tree(draw, draw.randint(0, 5)) for _ in range(draw.randint(1, 3))]
    costs, draft_seconds = CostModel({1: 1.0, 64: 1.0 + draw.uniform(0, 9)}), draw.choice((0.0, 0.5))
    call = draw.uniform(0.0, 0.2)
    probabilities = sorted((node.acceptance_prob for tree in trees for node in tree.nodes), reverse=True)

    def rate(taken: list[float], seconds: float) -> float:
        return (len(trees) + sum(taken)) / (costs.seconds(len(trees) + len(taken)) + seconds)

    before = max(rate(probabilities[:count], draft_seconds) for count in range(len(probabilities) + 1))
    least = min_expand_probability(trees, 5, costs, draft_seconds, call)
    for probability in (0.99 * least, 1.01 * least):
        counts = range(len(probabilities) + 1)
        after = max(rate([*probabilities[:count], probability], draft_seconds + call) for count in counts)
        assert (after > before) == (probability > least)


def test_nodes_that_cost_more_than_they_bring_are_not_verified() -> None:
    tree = DraftTree()
    tree.add_choices(-1, [(7, 0.5), (9, 0.05)])
    steep = CostModel({1: 1.0, 11: 3.0})  # a fifth of a step per token
    assert select_nodes([tree], 9, steep, 0.0) == [Draft.chain([7])]
    assert [len(draft) for draft in select_nodes([tree], 9, steep, 10.0)] == [2], "beside long drafting it is little"
    assert select_nodes([tree], 9, CostModel({1: 1.0, 11: 11.0}), 0.0) == [NO_DRAFT]


def test_a_probability_that_is_not_a_number_is_never_drafted() -> None:
    tree = DraftTree()
    tree.add_choices(-1, [(7, math.nan), (9, 0.2)])
    assert select_nodes([tree], 9, CostModel(FREE), 0.0) == [Draft.chain([9])]


def request(max_draft_tokens: int = 20, sequence_id: int = 0) -> DraftRequest:
    params = SamplingParams(max_tokens=max_draft_tokens + 1)
    return DraftRequest(sequence_id, [1], Request(request_id="a", prompt_token_ids=(1,), params=params), 0)


def halving(expansion: TreeExpansion, own: DraftRequest) -> Expansion:
    return Expansion(own, expansion.new_tree(own))


def advance(expansions: list[Expansion]) -> list[Expansion]:
    """Every further token is accepted half of the time."""
    for expansion in expansions:
        expansion.tree.frontier = list(expansion.tree.add_choices(expansion.tree.frontier[0], [(7, 0.5)]))
    return expansions


@pytest.mark.parametrize(
    ("call", "num_calls"),
    [
        (0.0, 9),
        # Tokens per second after calls 1, 2, 3: 1.5 / 1.16, 1.75 / 1.32, 1.875 / 1.48. A certain child has to bring what would
        # have come in 0.16 seconds, 0.207, 0.212, 0.203, and its parent has probability 0.5, 0.25, 0.125.
        (0.16, 3),
        (0.25, 2),  # 0.3 of 0.5, 0.29 of 0.25
        (0.6, 1),  # 0.56 of 0.5
        (9.0, 1),  # the first call has to be tried: probabilities are unknown before
    ],
)
def test_a_tree_is_expanded_as_long_as_a_certain_child_would_pay(call: float, num_calls: int) -> None:
    expansion = TreeExpansion(CostModel(FREE))
    expansion.draft_costs.record(1, call)
    own = halving(expansion, request())
    assert expansion.expand([own], 9, 9, advance) == num_calls == len(own.tree.nodes)
    expected_calls = DraftCalls(expansion).expected(9)
    assert expected_calls < 9 if num_calls < 9 else expected_calls == 9


class DraftCalls:
    def __init__(self, expansion: TreeExpansion) -> None:
        self.costs = expansion.draft_costs

    def expected(self, max_calls: int) -> float:
        self.costs._seconds[1] = 1.0
        seconds = self.costs.round_seconds(1, max_calls)
        assert seconds is not None
        return seconds


def test_an_expansion_ends_with_the_room_of_its_request_and_others_go_on() -> None:
    expansion = TreeExpansion(CostModel(FREE))
    expansions = [halving(expansion, request(room, room)) for room in (1, 3, 9)]
    assert expansion.expand(expansions, 9, 5, advance) == 5
    assert [len(own.tree.nodes) for own in expansions] == [1, 3, 5]


def test_a_round_ends_where_no_call_is_possible_and_only_calls_are_counted() -> None:
    expansion = TreeExpansion(CostModel(FREE))
    possible = iter((True, True, False))
    own = halving(expansion, request())
    assert expansion.expand([own], 9, 9, lambda active: advance(active) if next(possible) else None) == 2
    assert expansion.expand([], 9, 9, advance) == 0


def test_a_round_is_judged_once_by_what_became_of_its_sequences() -> None:
    expansion = TreeExpansion(CostModel(FREE))
    output = [1]
    here, gone = request(sequence_id=0)._replace(token_ids=output), request(sequence_id=1)
    for own in (here, gone):
        expansion.new_tree(own).add_choices(-1, [(7, 0.5)], "kind")
    output += [7, 8]
    expansion.record_acceptance([here])
    expansion.record_acceptance([here, gone])
    once, tree = AcceptanceCalibration(), DraftTree()
    once.record(tree.nodes[tree.add_choices(-1, [(7, 0.5)], "kind")[0]].keys, accepted=True)
    assert expansion.calibration._counts == once._counts


def test_each_request_gets_what_its_tree_is_worth() -> None:
    """Requests that are not asked about do not compete: for one sequence a call has taken nothing."""
    expansion = TreeExpansion(CostModel({1: 1.0, 11: 11.0}))  # a draft token takes as long as a step
    expansion.draft_costs.record(1, 0.0)
    expansion.draft_costs.record(2, 100.0)  # much would have to be verified to make up for it
    unlikely, idle, other = (request(sequence_id=i) for i in range(3))
    for own, probability in ((unlikely, 0.4), (other, 0.9)):
        expansion.new_tree(own).add_choices(-1, [(7, probability)])
    assert expansion.drafts([idle, unlikely], 9, 1) == [NO_DRAFT, NO_DRAFT]
    assert expansion.drafts([other, idle, unlikely], 9, 1) == [Draft.chain([7]), NO_DRAFT, Draft.chain([7])]
