"""Trees of guesses: paths, depths, cuts, and what a row's tokens see of each other, against walks from parent to parent."""

from __future__ import annotations

import random

import pytest
import torch

from hasten.core.concat_view import ConcatView
from hasten.core.draft import NO_DRAFT, Draft
from hasten.core.plan import RowPlan


def random_draft(draw: random.Random, num_nodes: int) -> Draft:
    nodes: list[tuple[int, int]] = []
    while len(nodes) < num_nodes:
        node = (draw.randrange(9), draw.randrange(-1, len(nodes)))
        if node not in nodes:
            nodes.append(node)
    return Draft(tuple(token for token, _ in nodes), tuple(parent for _, parent in nodes))


def ancestors(draft: Draft, node: int) -> list[int]:
    """From the first to the node itself."""
    line = []
    while node >= 0:
        line.append(node)
        node = draft.parents[node]
    return line[::-1]


def test_a_chain_is_a_tree_that_does_not_branch() -> None:
    chain = Draft.chain([5, 6, 7])
    assert chain == Draft((5, 6, 7), (-1, 0, 1)) and not chain.branches
    assert Draft((5, 6), (-1, -1)).branches
    assert not NO_DRAFT and not NO_DRAFT.branches and NO_DRAFT.accepted_path([1]) == () and NO_DRAFT.truncate(3, 0) == NO_DRAFT


@pytest.mark.parametrize("seed", range(30))
def test_paths_and_depths_are_those_of_a_walk(seed: int) -> None:
    draw = random.Random(seed)
    draft = random_draft(draw, draw.randint(1, 20))
    assert draft.depths == tuple(len(ancestors(draft, node)) for node in range(len(draft)))
    for node in range(len(draft)):
        line = ancestors(draft, node)
        tokens = [draft.token_ids[i] for i in line]
        assert draft.accepted_path([*tokens, 99]) == tuple(line)
        assert draft.find_child(draft.parents[node], draft.token_ids[node]) == node
    assert draft.accepted_path([99]) == ()


@pytest.mark.parametrize("seed", range(30))
def test_a_cut_keeps_the_first_nodes_that_are_not_too_deep(seed: int) -> None:
    draw = random.Random(seed)
    whole = random_draft(draw, draw.randint(1, 20))
    whole = Draft(whole.token_ids, whole.parents, tuple(torch.tensor([float(i)]) for i in range(len(whole))))
    count, depth = draw.randint(0, 21), draw.randint(1, 5)
    kept = [node for node in range(len(whole)) if len(ancestors(whole, node)) <= depth][:count]
    cut = whole.truncate(count, depth)
    paths = [[whole.token_ids[i] for i in ancestors(whole, node)] for node in kept]
    assert [[cut.token_ids[i] for i in ancestors(cut, node)] for node in range(len(cut))] == paths
    assert cut.draft_probs is not None and [int(q) for q in cut.draft_probs] == kept


@pytest.mark.parametrize("seed", range(20))
def test_a_row_places_and_shows_its_tokens_by_the_tree(seed: int) -> None:
    draw = random.Random(seed)
    draft, trunk, start = random_draft(draw, draw.randint(2, 12)), draw.randint(1, 3), draw.randint(0, 40)
    row = RowPlan(0, start, (*range(trunk), *draft.token_ids), ((0,),), 1, draft.parents)
    assert list(row.positions) == [*range(start, start + trunk), *(start + trunk - 1 + depth for depth in draft.depths)]
    for node in range(len(draft)):
        seen = {*range(trunk), *(trunk + i for i in ancestors(draft, node))}
        assert {i for i in range(64) if row.attention_bitmasks[trunk + node] >> i & 1} == seen
    plain = RowPlan(0, start, (1, 2, 3), ((0,),), 1)
    assert list(plain.positions) == [start, start + 1, start + 2] and plain.attention_bitmasks == [1, 3, 7]


def test_an_extended_text_reads_as_the_two_end_to_end() -> None:
    text, more = [1, 2, 3, 4], (5, 6)
    whole, extended = [*text, *more], ConcatView(text, more)
    assert list(extended) == whole and len(extended) == 6
    for start in range(-7, 8):
        assert extended[start:] == whole[start:] and extended[:start] == whole[:start]
        for stop in range(-7, 8):
            assert extended[start:stop] == whole[start:stop] and extended[start:stop:2] == whole[start:stop:2]
        if -6 <= start < 6:
            assert extended[start] == whole[start]
    with pytest.raises(IndexError):
        extended[6]
