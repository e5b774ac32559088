"""Tree policy and node selection are optimal: by brute force, and worked out by hand."""

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

CONSTANT_COST = {1: 1.0, 64: 1.0}  # every step takes one second


def random_tree(draw: random.Random, num_nodes: int) -> DraftTree:
    tree, token = DraftTree(), itertools.count()
    while len(tree.nodes) < num_nodes:
        tree.add_choices(draw.randrange(-1, len(tree.nodes)), [(next(token), draw.random())])
    return tree


def random_costs(draw: random.Random) -> CostModel:
    """Return costs that rise with the number of tokens, sometimes in jumps."""
    times = itertools.accumulate(draw.choice((0.0, 0.02, 0.3)) * draw.random() for _ in range(12))
    return CostModel({size: 1.0 + time for size, time in enumerate(times, start=1)})


def subtrees(tree: DraftTree, max_nodes: int) -> list[tuple[int, ...]]:
    """Return all sets of nodes that contain the parents of their nodes."""
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
def test_the_expansion_bound_is_where_a_certain_child_starts_to_pay(seed: int) -> None:
    draw = random.Random(seed)
    trees = [random_tree(draw, draw.randint(0, 5)) for _ in range(draw.randint(1, 3))]
    costs, draft_seconds = CostModel({1: 1.0, 64: 1.0 + draw.uniform(0, 9)}), draw.choice((0.0, 0.5))
    call_seconds = draw.uniform(0.0, 0.2)
    probabilities = sorted((node.acceptance_prob for tree in trees for node in tree.nodes), reverse=True)

    def rate(selected: list[float], seconds: float) -> float:
        return (len(trees) + sum(selected)) / (costs.seconds(len(trees) + len(selected)) + seconds)

    before = max(rate(probabilities[:count], draft_seconds) for count in range(len(probabilities) + 1))
    least = min_expand_probability(trees, 5, costs, draft_seconds, call_seconds)
    for probability in (0.99 * least, 1.01 * least):
        counts = range(len(probabilities) + 1)
        after = max(rate([*probabilities[:count], probability], draft_seconds + call_seconds) for count in counts)
        assert (after > before) == (probability > least)


def test_nodes_that_cost_more_than_they_bring_are_not_verified() -> None:
    tree = DraftTree()
    tree.add_choices(-1, [(7, 0.5), (9, 0.05)])
    steep = CostModel({1: 1.0, 11: 3.0})  # a fifth of a step per token
    assert select_nodes([tree], 9, steep, 0.0) == [Draft.chain([7])]
    assert [len(draft) for draft in select_nodes([tree], 9, steep, 10.0)] == [2], (
        "a long drafting time makes verification cheap in comparison"
    )
    assert select_nodes([tree], 9, CostModel({1: 1.0, 11: 11.0}), 0.0) == [NO_DRAFT]


def test_a_probability_that_is_not_a_number_is_never_drafted() -> None:
    tree = DraftTree()
    tree.add_choices(-1, [(7, math.nan), (9, 0.2)])
    assert select_nodes([tree], 9, CostModel(CONSTANT_COST), 0.0) == [Draft.chain([9])]


def request(max_draft_tokens: int = 20, sequence_id: int = 0) -> DraftRequest:
    params = SamplingParams(max_tokens=max_draft_tokens + 1)
    return DraftRequest(sequence_id, [1], Request(request_id="a", prompt_token_ids=(1,), params=params), 0)


def new_expansion(policy: TreeExpansion, draft_request: DraftRequest) -> Expansion:
    return Expansion(draft_request, policy.new_tree(draft_request))


def advance(expansions: list[Expansion]) -> list[Expansion]:
    """Add one child of acceptance probability 0.5 to each tree."""
    for expansion in expansions:
        expansion.tree.frontier = list(expansion.tree.add_choices(expansion.tree.frontier[0], [(7, 0.5)]))
    return expansions


@pytest.mark.parametrize(
    ("call_seconds", "num_calls"),
    [
        (0.0, 9),
        # Tokens per second after calls 1, 2, 3: 1.5 / 1.16, 1.75 / 1.32, 1.875 / 1.48. A certain child must bring the tokens of
        # another 0.16 seconds: 0.207, 0.212, 0.203. Its parent has probability 0.5, 0.25, 0.125.
        (0.16, 3),
        (0.25, 2),  # 0.3 tokens against 0.5, then 0.29 against 0.25
        (0.6, 1),  # 0.56 tokens against 0.5
        (9.0, 1),  # the first call is always made: probabilities are unknown before it
    ],
)
def test_a_tree_is_expanded_as_long_as_a_certain_child_would_pay(call_seconds: float, num_calls: int) -> None:
    policy = TreeExpansion(CostModel(CONSTANT_COST))
    policy.draft_costs.record(1, call_seconds)
    expansion = new_expansion(policy, request())
    assert policy.expand([expansion], 9, 9, advance) == num_calls == len(expansion.tree.nodes)
    policy.draft_costs._seconds[1] = 1.0
    expected_calls = policy.draft_costs.round_seconds(1, 9)
    assert expected_calls is not None
    assert expected_calls < 9 if num_calls < 9 else expected_calls == 9


def test_an_expansion_ends_at_max_draft_tokens_and_others_continue() -> None:
    policy = TreeExpansion(CostModel(CONSTANT_COST))
    expansions = [new_expansion(policy, request(limit, limit)) for limit in (1, 3, 9)]
    assert policy.expand(expansions, 9, 5, advance) == 5
    assert [len(expansion.tree.nodes) for expansion in expansions] == [1, 3, 5]


def test_a_round_ends_where_no_call_is_possible_and_only_calls_are_counted() -> None:
    policy = TreeExpansion(CostModel(CONSTANT_COST))
    possible = iter((True, True, False))
    expansion = new_expansion(policy, request())
    assert policy.expand([expansion], 9, 9, lambda active: advance(active) if next(possible) else None) == 2
    assert policy.expand([], 9, 9, advance) == 0


def test_the_outcome_of_a_round_is_recorded_once() -> None:
    policy = TreeExpansion(CostModel(CONSTANT_COST))
    output = [1]
    running, finished = request(sequence_id=0)._replace(token_ids=output), request(sequence_id=1)
    for draft_request in (running, finished):
        policy.new_tree(draft_request).add_choices(-1, [(7, 0.5)], "kind")
    output += [7, 8]
    policy.record_acceptance([running])
    policy.record_acceptance([running, finished])
    once, tree = AcceptanceCalibration(), DraftTree()
    once.record(tree.nodes[tree.add_choices(-1, [(7, 0.5)], "kind")[0]].keys, accepted=True)
    assert policy.calibration._counts == once._counts


def test_draft_tokens_are_selected_across_the_given_requests() -> None:
    """Other requests do not compete: for a batch of one, a call costs nothing."""
    policy = TreeExpansion(CostModel({1: 1.0, 11: 11.0}))  # a draft token takes as long as a step
    policy.draft_costs.record(1, 0.0)
    policy.draft_costs.record(2, 100.0)  # many draft tokens would have to be verified to make up for it
    unlikely, idle, other = (request(sequence_id=i) for i in range(3))
    for draft_request, probability in ((unlikely, 0.4), (other, 0.9)):
        policy.new_tree(draft_request).add_choices(-1, [(7, probability)])
    assert policy.drafts([idle, unlikely], 9, 1) == [NO_DRAFT, NO_DRAFT]
    assert policy.drafts([other, idle, unlikely], 9, 1) == [Draft.chain([7]), NO_DRAFT, Draft.chain([7])]
