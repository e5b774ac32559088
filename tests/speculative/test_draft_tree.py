"""What the text says of guessed trees, by brute force."""

from __future__ import annotations

import random

import pytest

from hasten.speculative.draft_tree import DraftTree
from hasten.speculative.trust import Trust


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
    tree, paths = DraftTree(trust), [()]
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
        tree = DraftTree(trust)
        tree.add(-1, [(1, 0.2), (2, 0.2)])
        tree.judge([1])
    tree = DraftTree(trust)
    tree.add(-1, [(5, 0.2)])
    tree.add(-1, [(6, 0.2)], rank=1)
    tree.add(0, [(7, 0.2)])
    first, other, after = (node.chance for node in tree.nodes)
    assert first > 0.9 and other < 0.1 and after == pytest.approx(first * first)
