"""How far trees grow and which of their nodes are verified: what no other choice beats, by brute force and by hand."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from hasten.core.draft import Draft
from hasten.core.request import Request
from hasten.core.sampling_params import SamplingParams
from hasten.speculative.draft_tree import DraftTree
from hasten.speculative.drafters.base import DraftRequest
from hasten.speculative.growth import Growth, doubt, worthwhile
from hasten.speculative.step_costs import StepCosts
from hasten.speculative.trust import Trust

FREE = {1: 1.0, 64: 1.0}  # seconds of steps in which further tokens cost nothing


def grown(draw: random.Random, num_nodes: int) -> DraftTree:
    tree, token = DraftTree(), itertools.count()
    while len(tree.nodes) < num_nodes:
        parent = draw.randrange(-1, len(tree.nodes))
        tree.add(parent, [(next(token), draw.random())])
    return tree


def steps(draw: random.Random) -> StepCosts:
    """Of rising cost, here and there by leaps."""
    times = itertools.accumulate(draw.choice((0.0, 0.02, 0.3)) * draw.random() for _ in range(12))
    return StepCosts({size: 1.0 + time for size, time in enumerate(times, start=1)})


def closed(tree: DraftTree, nodes: tuple[int, ...]) -> bool:
    return all(tree.nodes[node].parent in (-1, *nodes) for node in nodes)


def subsets(tree: DraftTree, most: int) -> list[tuple[int, ...]]:
    """Of its nodes, with the parents of all."""
    sizes = range(min(most, len(tree.nodes)) + 1)
    return [nodes for size in sizes for nodes in itertools.combinations(range(len(tree.nodes)), size) if closed(tree, nodes)]


def chance(tree: DraftTree, draft: Draft) -> float:
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
    tree = DraftTree()
    tree.add(-1, [(7, 0.6), (9, 0.3)])
    tree.add(0, [(4, 0.9), (5, 0.1)])
    (draft,) = worthwhile([tree], 3, StepCosts(FREE), 0.0)
    assert draft == Draft((7, 4, 9), (-1, 0, -1))


def test_what_costs_more_than_it_brings_is_not_verified() -> None:
    tree = DraftTree()
    tree.add(-1, [(7, 0.5), (9, 0.05)])
    dear = StepCosts({1: 1.0, 11: 3.0})  # a fifth of a step for each
    assert worthwhile([tree], 9, dear, 0.0) == [Draft.chain([7])]
    assert [len(draft) for draft in worthwhile([tree], 9, dear, 10.0)] == [2], "when so long was guessed it is little beside that"
    assert worthwhile([tree], 9, StepCosts({1: 1.0, 11: 11.0}), 0.0) == [Draft()]


def test_a_chance_that_is_no_number_is_no_guess() -> None:
    tree = DraftTree()
    tree.add(-1, [(7, math.nan), (9, 0.2)])
    assert worthwhile([tree], 9, StepCosts(FREE), 0.0) == [Draft.chain([9])]


class Halving:
    """A line each of whose guesses is as likely as not, if those before it are right."""

    def __init__(self, growth: Growth, line: DraftRequest) -> None:
        self.line, self.tree = line, growth.plant(line)

    def grow(self) -> None:
        self.tree.tips = [*self.tree.add(self.tree.tips[0], [(7, 0.5)])]


def line(room: int = 20, sequence_id: int = 0) -> DraftRequest:
    request = Request(request_id="a", prompt_token_ids=(1,), params=SamplingParams(max_tokens=room + 1))
    return DraftRequest(sequence_id, [1], request, 0)


def advance(guesses: list[Halving]) -> list[Halving]:
    for guess in guesses:
        guess.grow()
    return guesses


@pytest.mark.parametrize(
    ("call", "made"),
    [
        (0.0, 9),
        # Tokens a second after calls 1, 2, 3: 1.5 / 1.16, 1.75 / 1.32, 1.875 / 1.48. A sure guess has to bring what would have come
        # in 0.16 seconds, 0.207, 0.212, 0.203, and it is reached with 0.5, 0.25, 0.125.
        (0.16, 3),
        (0.25, 2),  # 0.3 of 0.5, 0.29 of 0.25
        (0.6, 1),  # 0.56 of 0.5
        (9.0, 1),  # it has to be tried: how sure it is is not known before
    ],
)
def test_a_guess_goes_on_as_long_as_a_sure_one_after_it_would_pay(call: float, made: int) -> None:
    growth = Growth(StepCosts(FREE))
    growth.pace.note(1, call)
    guess = Halving(growth, line())
    assert growth.grow([guess], 9, 9, advance) == made == len(guess.tree.nodes)
    assert growth.pace.calls(1, 9) < 9 if made < 9 else growth.pace.calls(1, 9) == 9


def test_a_guess_ends_with_the_room_of_its_line_and_others_go_on() -> None:
    growth = Growth(StepCosts(FREE))
    guesses = [Halving(growth, line(room, room)) for room in (1, 3, 9)]
    assert growth.grow(guesses, 9, 5, advance) == 5
    assert [len(guess.tree.nodes) for guess in guesses] == [1, 3, 5]


def test_a_round_ends_where_nothing_finds_room_and_only_calls_are_counted() -> None:
    growth = Growth(StepCosts(FREE))
    rooms = iter((True, True, False))
    assert growth.grow([Halving(growth, line())], 9, 9, lambda some: advance(some) if next(rooms) else None) == 2
    assert growth.grow([], 9, 9, advance) == 0


def test_a_round_is_judged_once_by_what_became_of_its_lines() -> None:
    growth = Growth(StepCosts(FREE))
    text = [1]
    here, gone = line(sequence_id=0)._replace(token_ids=text), line(sequence_id=1)
    for some in (here, gone):
        growth.plant(some).add(-1, [(7, 0.5)], "kind")
    text += [7, 8]
    growth.judge([here])
    growth.judge([here, gone])
    once = Trust()
    once.note(("kind", False), 0.5, right=True)
    assert growth.trust == once


def test_each_line_gets_what_its_tree_is_worth_and_a_whole_draft_is_left_as_it_is() -> None:
    """A tree whose draft is whole does not compete with the others either: for two lines a call has taken nothing."""
    growth = Growth(StepCosts({1: 1.0, 11: 11.0}))  # a guess takes what a step does
    growth.pace.note(1, 0.0)
    growth.pace.note(2, 100.0)  # of which much would have to be verified to make up for it
    unlikely, idle, whole = (line(sequence_id=i) for i in range(3))
    for some, chance in ((unlikely, 0.4), (whole, 0.9)):
        growth.plant(some).add(-1, [(7, chance)])
    chain = Draft.chain([3, 4, 5])
    assert growth.drafts([whole, idle, unlikely], 9, 1, {2: chain}) == [chain, Draft(), Draft()]
    assert growth.drafts([whole, idle, unlikely], 9, 1) == [Draft.chain([7]), Draft(), Draft.chain([7])]
