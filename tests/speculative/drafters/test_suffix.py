"""The suffix automaton and the suffix drafter against brute force."""

from __future__ import annotations

import random

import pytest

from hasten.core.draft import Draft
from hasten.core.request import Request
from hasten.core.sampling_params import SamplingParams
from hasten.speculative.drafters.base import DraftRequest
from hasten.speculative.drafters.suffix import MAX_REMATCH, SEPARATOR, Suffix, _Match
from hasten.speculative.drafters.suffix_automaton import SuffixAutomaton


def first_end(ngram: list[int], text: list[int], last: int) -> int | None:
    """Return the first end of ``ngram`` in ``text``, at most ``last``."""
    return next((end for end in range(len(ngram), last + 1) if text[end - len(ngram) : end] == ngram), None)


def longest_match(context: list[int], text: list[int], last: int, limit: int) -> tuple[int, int]:
    for length in range(min(limit, len(context)), 0, -1):
        end = first_end(context[len(context) - length :], text, last)
        if end is not None:
            return length, end
    return 0, 0


@pytest.mark.parametrize("alphabet", [2, 3, 8])
def test_the_longest_repeated_suffix_of_a_text(alphabet: int) -> None:
    draw = random.Random(alphabet)
    automaton, text = SuffixAutomaton(), []
    for _ in range(150):
        token = draw.randrange(alphabet)
        automaton.extend([token])
        text.append(token)
        assert automaton.longest_repeated_suffix() == longest_match(text, text, len(text) - 1, len(text))


@pytest.mark.parametrize("alphabet", [2, 3, 8])
def test_the_longest_suffix_of_one_text_that_occurs_in_another(alphabet: int) -> None:
    draw = random.Random(alphabet)
    text = [draw.randrange(alphabet) for _ in range(120)]
    automaton = SuffixAutomaton()
    automaton.extend(text)
    other: list[int] = []
    state = length = 0
    for _ in range(150):
        other.append(draw.randrange(alphabet + 1))
        state, length = automaton.match(state, length, other[-1:])
        expected = longest_match(other, text, len(text), len(other))
        assert length == expected[0]
        assert length == 0 or automaton.first_end(state) == expected[1]


def make_request(sequence_id: int, tokens: list[int], num_prompt_tokens: int, salt: str = "") -> DraftRequest:
    prompt = tuple(tokens[:num_prompt_tokens])
    request = Request(request_id=str(sequence_id), prompt_token_ids=prompt, params=SamplingParams(), cache_salt=salt)
    return DraftRequest(sequence_id, tokens, request, 0)


def by_definition(text: list[int], pool: list[int], num_tokens: int) -> tuple[int, ...]:
    """Return the draft from the request's own text, or from the pool if its match is longer.

    A draft never extends past the end of an output in the pool.
    """
    length, start, source = *longest_match(text, text, len(text) - 1, len(text)), text
    pool_length, pool_start = longest_match(text, pool, len(pool), MAX_REMATCH)
    if pool_length > length:
        length, start, source = pool_length, pool_start, pool
    draft: list[int] = []
    for i in range(min(num_tokens, 2 * length) if length >= 2 else 0):
        draft.append(source[start + i % (len(source) - start)])
    return tuple(draft[: draft.index(SEPARATOR)] if SEPARATOR in draft else draft)


def test_drafts_follow_the_definition_while_requests_start_and_finish() -> None:
    draw = random.Random(9)
    drafter = Suffix(6)
    requests: dict[int, DraftRequest] = {}
    pools: dict[str, list[int]] = {"": [], "red": []}
    finished: list[DraftRequest] = []
    from_pool = 0
    for step in range(160):
        while len(requests) < 3:
            tokens = [draw.randrange(5) for _ in range(draw.randint(1, 8))]
            sequence_id = step * 10 + len(requests)
            requests[sequence_id] = make_request(sequence_id, tokens, len(tokens), draw.choice(("", "red")))
        drafts = drafter.propose(list(requests.values()))
        for finished_request in finished:
            pools[finished_request.request.cache_salt] += [
                *finished_request.token_ids[len(finished_request.request.prompt_token_ids) :],
                SEPARATOR,
            ]
        finished = []
        for (sequence_id, draft_request), draft in zip(list(requests.items()), drafts, strict=True):
            pool = pools[draft_request.request.cache_salt]
            assert draft.token_ids == by_definition(list(draft_request.token_ids), pool, 6)
            from_pool += draft.token_ids != by_definition(list(draft_request.token_ids), [], 6)
            draft_request.token_ids.extend(draw.randrange(5) for _ in range(draw.choice((1, 1, 4))))
            if draw.random() < 0.06:
                finished.append(requests.pop(sequence_id))
    assert from_pool > 50


def test_tenants_do_not_see_the_outputs_of_others() -> None:
    drafter = Suffix()
    drafter.propose([make_request(0, [1, 2, 3, 4, 5, 6, 7], 1, "red")])
    drafter.propose([])
    assert drafter.propose([make_request(1, [9, 3, 4], 3, "blue")]) == [Draft.chain(())]
    assert drafter.propose([make_request(2, [9, 3, 4], 3, "red")]) == [Draft.chain((5, 6, 7))]


def test_old_outputs_and_idle_tenants_are_dropped() -> None:
    drafter = Suffix(pool_tokens=20, max_tenants=3)
    for number in range(12):
        drafter.propose([make_request(number, [number, *range(10 * number, 10 * number + 9)], 1, "red")])
    drafter.propose([])
    assert drafter.propose([make_request(100, [110, 111], 2, "red")]) == [Draft.chain((112, 113, 114, 115))]
    assert drafter.propose([make_request(101, [20, 21], 2, "red")]) == [Draft.chain(())]
    assert sum(len(pool.token_ids) for pool in (drafter._pools["red"].newer, drafter._pools["red"].older)) <= 50
    for number in range(5):
        drafter.propose([make_request(200 + number, [1, 2], 2, f"tenant {number}")])
    assert "red" not in drafter._pools and len(drafter._pools) == 3


def test_a_match_is_not_reused_for_another_pool_of_the_same_size() -> None:
    """A full pool is replaced, and the next one may have the same length."""
    match = _Match()
    pools = [SuffixAutomaton(), SuffixAutomaton()]
    pools[0].extend([1, 2, 3, 4, 5, 6, 7, 8])
    pools[1].extend([9, 9, 9, 9, 9, 9, 1, 2])
    match.update(pools[0], [1, 2, 3, 4])
    assert (match.length, pools[0].first_end(match.state)) == (4, 4)
    match.update(pools[1], [1, 2, 3, 4, 1, 2])
    assert (match.length, pools[1].first_end(match.state)) == (2, 8)
