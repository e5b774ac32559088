"""What drafters remember is bounded, and within the bound they draft as before."""

from __future__ import annotations

import random

import pytest
from tests.speculative.drafters.test_suffix import make_request

from hasten.speculative.drafters.base import INDEX_BYTES
from hasten.speculative.drafters.prompt_lookup import NgramIndex, PromptLookup
from hasten.speculative.drafters.suffix import Suffix
from hasten.speculative.drafters.suffix_automaton import SuffixAutomaton

LIMIT = 400


def random_tokens(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(50) for _ in range(count)]


def num_indexed(drafter: Suffix | PromptLookup) -> int:
    """Return the indexed tokens of running sequences."""
    if isinstance(drafter, Suffix):
        return sum(len(sequence.own.token_ids) for sequence in drafter._sequences.values())
    return sum(indices[0].num_indexed - indices[0].begin for indices in drafter._indices.values())


@pytest.mark.parametrize("kind", [Suffix, PromptLookup])
def test_running_sequences_index_a_bounded_number_of_tokens(kind: type[Suffix] | type[PromptLookup]) -> None:
    draw, drafter = random.Random(1), kind(max_tokens=LIMIT)
    requests = [make_request(number, random_tokens(draw, 90), 90) for number in range(7)]
    for _ in range(60):
        running = requests[: draw.randint(1, 7)]
        drafter.propose(running)
        assert 0 < num_indexed(drafter) <= LIMIT
        for request in running:
            request.token_ids.extend(random_tokens(draw, 10))


@pytest.mark.parametrize("kind", [Suffix, PromptLookup])
def test_the_newest_tokens_of_a_long_sequence_still_draft(kind: type[Suffix] | type[PromptLookup]) -> None:
    drafter, phrase = kind(max_tokens=LIMIT), list(range(1000, 1040))
    tokens = [*random_tokens(random.Random(2), 5000), *phrase, 7, *phrase[:10]]
    (draft,) = drafter.propose([make_request(0, tokens, len(tokens))])
    assert draft.token_ids == tuple(phrase[10 : 10 + len(draft.token_ids)]) and draft.token_ids


def test_the_pools_of_all_tenants_are_bounded_and_the_newest_stay() -> None:
    draw, drafter = random.Random(3), Suffix(max_tokens=LIMIT)
    for number in range(40):
        drafter.propose([make_request(number, random_tokens(draw, draw.choice((20, 90, 1000))), 1, f"tenant {number % 9}")])
        drafter.propose([])
        assert sum(map(len, drafter._pools.values())) <= LIMIT
    drafter.propose([make_request(100, [1, *range(100, 130)], 1, "tenant 3")])
    drafter.propose([])
    (draft,) = drafter.propose([make_request(101, [9, 100, 101], 3, "tenant 3")])
    assert draft.token_ids == (102, 103, 104, 105)


@pytest.mark.parametrize("alphabet", [2, 40_000])
def test_an_indexed_token_takes_no_more_memory_than_planned(alphabet: int) -> None:
    import tracemalloc

    draw = random.Random(4)
    tokens = [draw.randrange(alphabet) for _ in range(20_000)]
    tracemalloc.start()
    try:
        automaton = SuffixAutomaton()
        automaton.extend(tokens)
        suffix_bytes, _ = tracemalloc.get_traced_memory()
        indices = [NgramIndex(size) for size in (4, 3, 2)]
        for index in indices:
            index.update(tokens)
        both_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert suffix_bytes < INDEX_BYTES * len(tokens)
    assert both_bytes - suffix_bytes < INDEX_BYTES * len(tokens)
