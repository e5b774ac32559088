"""The suffix automaton and its drafter against brute force."""

from __future__ import annotations

import random

import pytest

from hasten.core.draft import Draft
from hasten.core.request import Request
from hasten.core.sampling_params import SamplingParams
from hasten.speculative.drafters.base import DraftRequest
from hasten.speculative.drafters.suffix import MAX_REMATCH, SEPARATOR, Suffix, _Match
from hasten.speculative.drafters.suffix_automaton import SuffixAutomaton


def occurrence(run: list[int], text: list[int], last: int) -> int | None:
    """Where ``run`` first ends in ``text``, at ``last`` or before it."""
    return next((end for end in range(len(run), last + 1) if text[end - len(run) : end] == run), None)


def longest_run(end_of: list[int], text: list[int], last: int, limit: int) -> tuple[int, int]:
    for length in range(min(limit, len(end_of)), 0, -1):
        end = occurrence(end_of[len(end_of) - length :], text, last)
        if end is not None:
            return length, end
    return 0, 0


@pytest.mark.parametrize("alphabet", [2, 3, 8])
def test_the_longest_repeated_end_of_a_text(alphabet: int) -> None:
    draw = random.Random(alphabet)
    automaton, text = SuffixAutomaton(), []
    for _ in range(150):
        token = draw.randrange(alphabet)
        automaton.extend([token])
        text.append(token)
        assert automaton.longest_repeated_suffix() == longest_run(text, text, len(text) - 1, len(text))


@pytest.mark.parametrize("alphabet", [2, 3, 8])
def test_the_longest_end_of_one_text_that_occurs_in_another(alphabet: int) -> None:
    draw = random.Random(alphabet)
    text = [draw.randrange(alphabet) for _ in range(120)]
    automaton = SuffixAutomaton()
    automaton.extend(text)
    other: list[int] = []
    state = length = 0
    for _ in range(150):
        other.append(draw.randrange(alphabet + 1))
        state, length = automaton.match(state, length, other[-1:])
        expected = longest_run(other, text, len(text), len(other))
        assert length == expected[0]
        assert length == 0 or automaton.first_end(state) == expected[1]


def request(number: int, tokens: list[int], num_prompt: int, salt: str = "") -> DraftRequest:
    request = Request(request_id=str(number), prompt_token_ids=tuple(tokens[:num_prompt]), params=SamplingParams(), cache_salt=salt)
    return DraftRequest(number, tokens, request, 0)


def by_definition(text: list[int], pool: list[int], num_tokens: int) -> tuple[int, ...]:
    """From the request's own text unless the pool knows a longer run; never past the end of an answer."""
    length, begin, source = *longest_run(text, text, len(text) - 1, len(text)), text
    in_pool, place = longest_run(text, pool, len(pool), MAX_REMATCH)
    if in_pool > length:
        length, begin, source = in_pool, place, pool
    draft: list[int] = []
    for i in range(min(num_tokens, 2 * length) if length >= 2 else 0):
        draft.append(source[begin + i % (len(source) - begin)])
    return tuple(draft[: draft.index(SEPARATOR)] if SEPARATOR in draft else draft)


def test_guesses_are_those_of_the_definition_while_lines_come_and_go() -> None:
    draw = random.Random(9)
    drafter = Suffix(6)
    requests: dict[int, DraftRequest] = {}
    pools: dict[str, list[int]] = {"": [], "red": []}
    ended: list[DraftRequest] = []
    from_pool = 0
    for step in range(160):
        while len(requests) < 3:
            tokens = [draw.randrange(5) for _ in range(draw.randint(1, 8))]
            number = step * 10 + len(requests)
            requests[number] = request(number, tokens, len(tokens), draw.choice(("", "red")))
        drafts = drafter.propose(list(requests.values()))
        for gone in ended:
            pools[gone.request.cache_salt] += [*gone.token_ids[len(gone.request.prompt_token_ids) :], SEPARATOR]
        ended = []
        for (number, each), draft in zip(list(requests.items()), drafts, strict=True):
            pool = pools[each.request.cache_salt]
            assert draft.token_ids == by_definition(list(each.token_ids), pool, 6)
            from_pool += draft.token_ids != by_definition(list(each.token_ids), [], 6)
            each.token_ids.extend(draw.randrange(5) for _ in range(draw.choice((1, 1, 4))))
            if draw.random() < 0.06:
                ended.append(requests.pop(number))
    assert from_pool > 50


def test_tenants_do_not_see_each_others_answers() -> None:
    drafter = Suffix()
    drafter.propose([request(0, [1, 2, 3, 4, 5, 6, 7], 1, "red")])
    drafter.propose([])
    assert drafter.propose([request(1, [9, 3, 4], 3, "blue")]) == [Draft.chain(())]
    assert drafter.propose([request(2, [9, 3, 4], 3, "red")]) == [Draft.chain((5, 6, 7))]


def test_old_answers_and_idle_tenants_are_forgotten() -> None:
    drafter = Suffix(pool_tokens=20, max_tenants=3)
    for number in range(12):
        drafter.propose([request(number, [number, *range(10 * number, 10 * number + 9)], 1, "red")])
    drafter.propose([])
    assert drafter.propose([request(100, [110, 111], 2, "red")]) == [Draft.chain((112, 113, 114, 115))]
    assert drafter.propose([request(101, [20, 21], 2, "red")]) == [Draft.chain(())]
    assert sum(len(pool.token_ids) for pool in (drafter._pools["red"].newer, drafter._pools["red"].older)) <= 50
    for number in range(5):
        drafter.propose([request(200 + number, [1, 2], 2, f"tenant {number}")])
    assert "red" not in drafter._pools and len(drafter._pools) == 3


def test_a_match_is_never_carried_into_another_pool_of_the_same_size() -> None:
    """Pools are exchanged when one is full, and the next may be as long as the last."""
    match = _Match()
    pools = [SuffixAutomaton(), SuffixAutomaton()]
    pools[0].extend([1, 2, 3, 4, 5, 6, 7, 8])
    pools[1].extend([9, 9, 9, 9, 9, 9, 1, 2])
    match.update(pools[0], [1, 2, 3, 4])
    assert (match.length, pools[0].first_end(match.state)) == (4, 4)
    match.update(pools[1], [1, 2, 3, 4, 1, 2])
    assert (match.length, pools[1].first_end(match.state)) == (2, 8)
