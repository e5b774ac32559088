"""Draft trees: paths, depths, truncation and attention masks equal those of parent walks."""

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
    """Return the nodes from the first one to ``node``."""
    nodes = []
    while node >= 0:
        nodes.append(node)
        node = draft.parents[node]
    return nodes[::-1]


def test_a_chain_is_a_tree_without_branches() -> None:
    chain = Draft.chain([5, 6, 7])
    assert chain == Draft((5, 6, 7), (-1, 0, 1)) and chain.is_chain
    assert not Draft((5, 6), (-1, -1)).is_chain
    assert not NO_DRAFT and NO_DRAFT.is_chain and NO_DRAFT.accepted_path([1]) == () and NO_DRAFT.truncate(3, 0) == NO_DRAFT


@pytest.mark.parametrize("seed", range(30))
def test_paths_and_depths_are_those_of_a_walk(seed: int) -> None:
    draw = random.Random(seed)
    draft = random_draft(draw, draw.randint(1, 20))
    assert draft.depths == tuple(len(ancestors(draft, node)) for node in range(len(draft)))
    for node in range(len(draft)):
        path = ancestors(draft, node)
        tokens = [draft.token_ids[i] for i in path]
        assert draft.accepted_path([*tokens, 99]) == tuple(path)
        assert draft.find_child(draft.parents[node], draft.token_ids[node]) == node
    assert draft.accepted_path([99]) == ()


@pytest.mark.parametrize("seed", range(30))
def test_truncate_keeps_the_first_nodes_that_are_not_too_deep(seed: int) -> None:
    draw = random.Random(seed)
    full = random_draft(draw, draw.randint(1, 20))
    full = Draft(full.token_ids, full.parents, tuple(torch.tensor([float(i)]) for i in range(len(full))))
    count, depth = draw.randint(0, 21), draw.randint(1, 5)
    kept = [node for node in range(len(full)) if len(ancestors(full, node)) <= depth][:count]
    truncated = full.truncate(count, depth)
    paths = [[full.token_ids[i] for i in ancestors(full, node)] for node in kept]
    assert [[truncated.token_ids[i] for i in ancestors(truncated, node)] for node in range(len(truncated))] == paths
    assert truncated.draft_probs is not None and [int(q) for q in truncated.draft_probs] == kept


@pytest.mark.parametrize("seed", range(20))
def test_positions_and_attention_masks_of_a_row_follow_the_tree(seed: int) -> None:
    draw = random.Random(seed)
    draft, count, start = random_draft(draw, draw.randint(2, 12)), draw.randint(1, 3), draw.randint(0, 40)
    row = RowPlan(0, start, (*range(count), *draft.token_ids), ((0,),), 1, draft.parents)
    assert list(row.positions) == [*range(start, start + count), *(start + count - 1 + depth for depth in draft.depths)]
    for node in range(len(draft)):
        attended = {*range(count), *(count + i for i in ancestors(draft, node))}
        assert {i for i in range(64) if row.attention_bitmasks[count + node] >> i & 1} == attended
    without_tree = RowPlan(0, start, (1, 2, 3), ((0,),), 1)
    assert list(without_tree.positions) == [start, start + 1, start + 2] and without_tree.attention_bitmasks == [1, 3, 7]


def test_a_concat_view_reads_as_the_concatenation() -> None:
    first, second = [1, 2, 3, 4], (5, 6)
    expected, view = [*first, *second], ConcatView(first, second)
    assert list(view) == expected and len(view) == 6
    for start in range(-7, 8):
        assert view[start:] == expected[start:] and view[:start] == expected[:start]
        for stop in range(-7, 8):
            assert view[start:stop] == expected[start:stop] and view[start:stop:2] == expected[start:stop:2]
        if -6 <= start < 6:
            assert view[start] == expected[start]
    with pytest.raises(IndexError):
        view[6]
