"""``guided_draft`` keeps the nodes of a draft whose whole path a guide allows, and puts forced tokens first."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from hasten.core.draft import NO_DRAFT, Draft
from hasten.core.errors import HastenError
from hasten.engine.guided_draft import MAX_FORCED_TOKENS, guided_draft, truncate_forced
from hasten.speculative.cost_model import CostModel
from tests.scheduling.world import random_tree


@dataclass
class SumGuide:
    """Allows a token while the sum of all tokens is at most ``limit``."""

    limit: int
    failure: str | None = None
    forced: tuple[int, ...] = ()
    error: Exception | None = None

    def forced_tokens(self, token_ids: Sequence[int]) -> Sequence[int]:
        if self.error is not None:
            raise self.error
        return self.forced

    def mask(self, token_ids: Sequence[int]) -> None:
        raise AssertionError("a draft needs no mask")

    def num_allowed(self, token_ids: Sequence[int], next_tokens: Sequence[int]) -> int:
        total, count = sum(token_ids), 0
        for token_id in next_tokens:
            total += token_id
            if total > self.limit:
                break
            count += 1
        return count

    def is_complete(self, token_ids: Sequence[int]) -> bool:
        raise AssertionError("a draft ends no output")


@dataclass
class FakeRequest:
    num_initial_tokens: int = 2
    eos_token_ids: tuple[int, ...] = (99,)
    request_id: str = "r"


@dataclass
class FakeSequence:
    draft: Draft
    token_ids: list[int] = field(default_factory=lambda: [1000, 1000, 1, 2])  # a prompt, which does not count, and an output
    request: FakeRequest = field(default_factory=FakeRequest)


def paths(draft: Draft) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for token_id, parent in zip(draft.token_ids, draft.parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token_id))
    return found


def guided(guide: Any, draft: Draft) -> Draft:
    sequence: Any = FakeSequence(draft)
    return guided_draft(guide, sequence)


@pytest.mark.parametrize("seed", range(60))
def test_the_nodes_kept_are_those_whose_path_is_allowed(seed: int) -> None:
    draw = random.Random(seed)
    tokens = [draw.randint(0, 9) for _ in range(draw.randint(1, 8))]
    draft = Draft.chain(tokens) if seed % 3 == 0 else random_tree(draw, tokens, draw.randint(0, 9))
    small = [token_id % 10 for token_id in draft.token_ids]
    # Drafters that branch have no distributions. Those of chains are conditioned, which tests/engine/test_guides.py looks at.
    numbers = None if draft.is_chain else tuple(range(len(small)))
    draft = Draft(tuple(small), draft.parents, numbers, tuple(1 / (2 + i) for i in range(len(small))))
    guide = SumGuide(draw.randint(0, 30))
    found = guided(guide, draft)
    expected = [i for i, path in enumerate(paths(draft)) if 3 + sum(path) <= guide.limit]
    assert paths(found) == [paths(draft)[i] for i in expected]
    assert list(found.draft_probs or ()) == ([] if draft.is_chain else expected)
    assert found.acceptance_probs == (tuple(1 / (2 + i) for i in expected) if draft.acceptance_probs else None) or not expected


def test_forced_tokens_replace_a_draft_and_are_bounded() -> None:
    for draft in (NO_DRAFT, Draft.chain([5, 6])):
        assert guided(SumGuide(0, forced=(7, 8, 9)), draft) == Draft.chain([7, 8, 9])
        assert guided(SumGuide(0, forced=(7,) * 50), draft) == Draft.chain([7] * MAX_FORCED_TOKENS)
        # Every row of a step finds the forced tokens after it, so a long text gets few rows.
        assert 1 <= len(guided(SumGuide(0, forced=(7,) * 400), draft)) <= 5
        assert not guided(SumGuide(0, forced=(7,) * 50_000), draft)


def test_no_draft_stays_none_and_a_failing_guide_gives_none() -> None:
    assert not guided(SumGuide(99), NO_DRAFT)
    for error in (HastenError("a limit"), RuntimeError("a fault")):
        assert not guided(SumGuide(99, error=error), Draft.chain([1]))


def test_forced_tokens_are_drafted_as_far_as_they_pay() -> None:
    free = Draft((1, 2), (-1, 0), None, (0.9, 0.8))
    forced = guided(SumGuide(0, forced=(7, 8, 9)), NO_DRAFT)
    bound_by_memory = CostModel({1: 1.0, 64: 1.05})
    bound_by_arithmetic = CostModel({1: 1.0, 64: 64.0})
    assert truncate_forced([forced, NO_DRAFT, free], bound_by_memory) == [Draft.chain([7, 8, 9]), NO_DRAFT, free]
    assert truncate_forced([forced, NO_DRAFT, free], bound_by_arithmetic) == [NO_DRAFT, NO_DRAFT, free]
    assert truncate_forced([forced, free], None) == [NO_DRAFT, free]


def test_a_draft_stops_before_an_end_token() -> None:
    assert guided(SumGuide(1000), Draft.chain([5, 99, 6])) == Draft.chain([5])
    assert guided(SumGuide(1000), Draft((99, 5, 6), (-1, -1, 0))) == Draft.chain([5])
