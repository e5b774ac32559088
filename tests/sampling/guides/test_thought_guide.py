"""A thought ends within its budget and closes once; the answer follows, under its own guide alone."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer

from hasten.sampling.guides.base import TokenGuide
from hasten.sampling.guides.grammar_guide import GrammarGuide
from hasten.sampling.guides.thought_guide import Opening, ThoughtGuide, ThoughtTokens

BYTES = LLTokenizer("byte")
VOCAB, EOS = BYTES.vocab_size, BYTES.eos_token
START, END = (256,), (257,)  # special tokens of their own
TEXT_MARKS = ThoughtTokens((60, 116, 62), ((60, 47, 116, 62),), (10, 60, 47, 116, 62))  # "<t>", "</t>", a line break before it
SINGLE_MARKS = ThoughtTokens(START, (END,), END)
BUDGETS = (0, 1, 16, 64)


def guide(
    marks: ThoughtTokens, opening: Opening = Opening.THOUGHT, budget: int | None = None, grammar: str | None = None
) -> ThoughtGuide:
    answer: TokenGuide | None = None
    if grammar is not None:
        answer = GrammarGuide(LLMatcher(BYTES, LLMatcher.grammar_from_regex(grammar)), VOCAB, [EOS], 1)
    return ThoughtGuide(marks=marks, opening=opening, budget=budget, answer=answer, eos_token_ids=(EOS,), vocab_size=VOCAB)


def allowed(own: TokenGuide, tokens: Sequence[int]) -> list[int]:
    """The tokens that may come next, as the sampler sees them."""
    if forced := own.forced_tokens(tokens):
        return [forced[0]]
    mask = own.mask(tokens)
    if mask is None:
        return list(range(VOCAB))
    return [int(i) for i in np.flatnonzero(np.unpackbits(mask.view(np.uint8), count=VOCAB, bitorder="little"))]


def walk(own: ThoughtGuide, draw: random.Random, num: int) -> list[int]:
    """A random output. It writes parts of marks more often than by chance."""
    liked = [*own.marks.start, *own.marks.ends[0], *own.marks.closing, EOS]
    tokens: list[int] = []
    while len(tokens) < num:
        choices = allowed(own, tokens)
        wanted = [token for token in liked if token in choices]
        token = draw.choice(wanted if wanted and draw.random() < 0.4 else choices)
        if token == EOS:
            break
        tokens.append(token)
    return tokens


def find(tokens: Sequence[int], mark: tuple[int, ...]) -> int:
    return next((i for i in range(len(tokens)) if tuple(tokens[i : i + len(mark)]) == mark), -1)


@pytest.mark.parametrize("marks", [SINGLE_MARKS, TEXT_MARKS], ids=["single", "text"])
@pytest.mark.parametrize("budget", BUDGETS)
def test_a_thought_ends_within_its_budget_and_the_answer_follows(marks: ThoughtTokens, budget: int) -> None:
    for seed in range(100):
        tokens = walk(guide(marks, budget=budget, grammar="[0-9]{3}"), random.Random(seed), 200)
        end = find(tokens, marks.ends[0])
        assert end >= 0, "it is closed"
        thought, answer = tokens[:end], tokens[end + len(marks.ends[0]) :]
        beginning = marks.closing[: len(marks.closing) - len(marks.ends[0])]
        if beginning and tuple(thought[-len(beginning) :]) == beginning and len(thought) > budget:
            thought = thought[: -len(beginning)]
        assert len(thought) <= budget
        assert EOS not in thought
        assert len(answer) == 3
        assert all(48 <= token <= 57 for token in answer)


@pytest.mark.parametrize("budget", BUDGETS)
def test_marks_of_one_token_stand_once(budget: int) -> None:
    for seed in range(25):
        tokens = walk(guide(SINGLE_MARKS, Opening.EITHER, budget), random.Random(seed), 120)
        assert tokens.count(END[0]) <= 1 or tokens[:1] != [START[0]]
        if tokens[:1] == [START[0]]:
            assert tokens.count(START[0]) == 1
            assert tokens.count(END[0]) == 1 or len(tokens) <= budget + 1


def test_an_output_may_start_with_a_thought_or_with_the_answer() -> None:
    own = guide(SINGLE_MARKS, Opening.EITHER, grammar="ab")
    assert allowed(own, []) == [ord("a"), START[0]]
    assert allowed(own, [ord("a")]) == [ord("b")]
    assert EOS not in allowed(own, [START[0]])
    assert len(allowed(own, [START[0]])) == VOCAB - 2
    assert allowed(own, [START[0], 7, END[0]]) == [ord("a")]
    assert not own.is_complete([START[0], ord("a"), ord("b")])
    assert own.is_complete([START[0], END[0], ord("a"), ord("b")])
    assert own.is_complete([ord("a"), ord("b")])


def test_no_thought_follows_a_closed_one() -> None:
    assert allowed(guide(SINGLE_MARKS, Opening.ANSWER, grammar="ab"), []) == [ord("a")]


def test_a_mark_of_several_tokens_that_has_begun_goes_on() -> None:
    own = guide(TEXT_MARKS, Opening.EITHER, grammar="ab")
    assert allowed(own, []) == [ord("<"), ord("a")]
    assert allowed(own, [ord("<")]) == [ord("t")]


@pytest.mark.parametrize("marks", [SINGLE_MARKS, TEXT_MARKS], ids=["single", "text"])
def test_drafts_are_allowed_as_far_as_each_token_is(marks: ThoughtTokens) -> None:
    own = guide(marks, Opening.EITHER, budget=5, grammar="[a-f]{4}")
    for seed in range(60):
        draw = random.Random(seed)
        tokens = walk(own, draw, 24)
        cut = draw.randrange(len(tokens) + 1)
        draft = tokens[cut:]
        if draft and draw.random() < 0.5:
            draft[draw.randrange(len(draft))] = draw.randrange(VOCAB)
        expected = 0
        while expected < len(draft) and draft[expected] in allowed(own, tokens[:cut] + draft[:expected]):
            expected += 1
        assert own.num_allowed(tokens[:cut], draft) == expected


@pytest.mark.parametrize("opening", [Opening.EITHER, Opening.ANSWER])
def test_no_thought_begins_within_an_answer(opening: Opening) -> None:
    own = guide(SINGLE_MARKS, opening, budget=4)
    assert (START[0] in allowed(own, [])) == (opening is Opening.EITHER)
    for answer in ([65], [10, 10], [END[0]], [65] * 40):
        assert set(range(VOCAB)) - set(allowed(own, answer)) == {START[0]}
        assert own.num_allowed(answer, [66, START[0], 67]) == 1
