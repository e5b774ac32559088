"""Which nodes of guessed trees are verified: those that no other choice beats, by brute force. And what the text says of them."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from hasten.core.draft import Draft
from hasten.core.request import Request
from hasten.core.sampling_params import SamplingParams
from hasten.decoding.drafters.base import Line
from hasten.decoding.growing_tree import Grove, GrowingTree, doubt, worthwhile
from hasten.decoding.step_costs import StepCosts
from hasten.decoding.trust import Trust


def grown(draw: random.Random, num_nodes: int) -> GrowingTree:
    tree, token = GrowingTree(), itertools.count()
    while len(tree.nodes) < num_nodes:
        parent = draw.randrange(-1, len(tree.nodes))
        tree.add(parent, [(next(token), draw.random())])
    return tree


def steps(draw: random.Random) -> StepCosts:
    """Of rising cost, here and there by leaps."""
    times = itertools.accumulate(draw.choice((0.0, 0.02, 0.3)) * draw.random() for _ in range(12))
    return StepCosts({size: 1.0 + time for size, time in enumerate(times, start=1)})


def closed(tree: GrowingTree, nodes: tuple[int, ...]) -> bool:
    return all(tree.nodes[node].parent in (-1, *nodes) for node in nodes)


def subsets(tree: GrowingTree, most: int) -> list[tuple[int, ...]]:
    """Of its nodes, with the parents of all."""
    sizes = range(min(most, len(tree.nodes)) + 1)
    return [nodes for size in sizes for nodes in itertools.combinations(range(len(tree.nodes)), size) if closed(tree, nodes)]


def chance(tree: GrowingTree, draft: Draft) -> float:
    """The sum over its nodes, found by their tokens."""
    return sum(node.chance for node in tree.nodes if node.token_id in draft.token_ids)


@pytest.mark.parametrize("seed", range(40))
def test_no_other_choice_gives_more_tokens_a_second(seed: int) -> None:
    draw = random.Random(seed)
    trees = [grown(draw, draw.randint(0, 5)) for _ in range(draw.randint(1, 3))]
    most, costs, spent = draw.randint(1, 5), steps(draw), draw.choice((0.0, 0.5))

    def rate(gained: float, count: int) -> float:
        return (len(trees) + gained) / (costs.seconds(len(trees) + count) + spent)

    drafts = worthwhile(trees, most, costs, spent)
    found = rate(sum(map(chance, trees, drafts)), sum(map(len, drafts)))
    choices = itertools.product(*(subsets(tree, most) for tree in trees))
    best = max(
        rate(sum(tree.nodes[i].chance for tree, nodes in zip(trees, choice, strict=True) for i in nodes), sum(map(len, choice)))
        for choice in choices
    )
    assert found == pytest.approx(best)
    assert all(len(draft) <= most for draft in drafts)


@pytest.mark.parametrize("seed", range(40))
def test_going_on_from_a_node_pays_where_a_sure_guess_after_it_would(seed: int) -> None:
    draw = random.Random(seed)
    trees = [grown(draw, draw.randint(0, 5)) for _ in range(draw.randint(1, 3))]
    costs, spent, call = StepCosts({1: 1.0, 64: 1.0 + draw.uniform(0, 9)}), draw.choice((0.0, 0.5)), draw.uniform(0.0, 0.2)
    chances = sorted((node.chance for tree in trees for node in tree.nodes), reverse=True)

    def rate(taken: list[float], seconds: float) -> float:
        return (len(trees) + sum(taken)) / (costs.seconds(len(trees) + len(taken)) + seconds)

    before = max(rate(chances[:count], spent) for count in range(len(chances) + 1))
    least = doubt(trees, 5, costs, spent, call)
    for chance in (0.99 * least, 1.01 * least):
        after = max(rate([*chances[:count], chance], spent + call) for count in range(len(chances) + 1))
        assert (after > before) == (chance > least)


def test_drafts_are_the_trees_with_their_branches() -> None:
    tree = GrowingTree()
    tree.add(-1, [(7, 0.6), (9, 0.3)])
    tree.add(0, [(4, 0.9), (5, 0.1)])
    (draft,) = worthwhile([tree], 3, StepCosts({1: 1.0, 64: 1.0}), 0.0)
    assert draft == Draft((7, 4, 9), (-1, 0, -1))


def test_what_costs_more_than_it_brings_is_not_verified() -> None:
    tree = GrowingTree()
    tree.add(-1, [(7, 0.5), (9, 0.05)])
    dear = StepCosts({1: 1.0, 11: 3.0})  # a fifth of a step for each
    assert worthwhile([tree], 9, dear, 0.0) == [Draft.chain([7])]
    assert [len(draft) for draft in worthwhile([tree], 9, dear, 10.0)] == [2], "when so long was guessed it is little beside that"
    assert worthwhile([tree], 9, StepCosts({1: 1.0, 11: 11.0}), 0.0) == [Draft()]


def test_a_chance_that_is_no_number_is_no_guess() -> None:
    tree = GrowingTree()
    tree.add(-1, [(7, math.nan), (9, 0.2)])
    assert worthwhile([tree], 9, StepCosts({1: 1.0, 64: 1.0}), 0.0) == [Draft.chain([9])]


class Told(Trust):
    """What it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.verdicts: list[tuple[object, float, bool]] = []

    def note(self, kind: object, said: float, *, right: bool) -> None:
        self.verdicts.append((kind, said, right))


@pytest.mark.parametrize("seed", range(40))
def test_the_text_judges_every_guess_that_it_comes_to(seed: int) -> None:
    draw = random.Random(seed)
    trust = Told()
    tree, paths = GrowingTree(trust), [()]
    for _ in range(draw.randint(0, 6)):
        parent = draw.randrange(-1, len(tree.nodes))
        used = {tree.nodes[i].token_id for i in range(len(tree.nodes)) if tree.nodes[i].parent == parent}
        tokens = draw.sample([token for token in range(6) if token not in used], 2)
        tree.add(parent, [(token, draw.random()) for token in tokens], source=draw.choice("ab"))
        paths += [(*paths[parent + 1], token) for token in tokens]
    text = [draw.randrange(6) for _ in range(draw.randint(0, 4))]
    tree.judge(text)
    reached = [
        (node.kind, node.said, path[-1] == text[len(path) - 1])
        for node, path in zip(tree.nodes, paths[1:], strict=True)
        if len(path) <= len(text) and list(path[:-1]) == text[: len(path) - 1]
    ]
    assert sorted(trust.verdicts, key=repr) == sorted(reached, key=repr)


def test_first_choices_and_others_are_believed_apart() -> None:
    trust = Trust()
    for _ in range(50):
        tree = GrowingTree(trust)
        tree.add(-1, [(1, 0.2), (2, 0.2)])
        tree.judge([1])
    tree = GrowingTree(trust)
    tree.add(-1, [(5, 0.2)])
    tree.add(-1, [(6, 0.2)], rank=1)
    tree.add(0, [(7, 0.2)])
    first, other, after = (node.chance for node in tree.nodes)
    assert first > 0.9 and other < 0.1 and after == pytest.approx(first * first)


def test_a_round_is_judged_once_by_what_became_of_its_lines() -> None:
    request = Request(request_id="a", prompt_token_ids=(1,), params=SamplingParams())
    text = [1]
    line, gone = Line(0, text, request, 0), Line(1, [1], request, 0)
    grove = Grove(Told())
    assert isinstance(grove.trust, Told)
    for some in (line, gone):
        grove.plant(some).add(-1, [(7, 0.5)])
    text += [7, 8]
    grove.judge([line])
    grove.judge([line, gone])
    assert [right for _, _, right in grove.trust.verdicts] == [True]
