"""Final answers are found as a reader finds them, and votes are counted as by hand."""

from __future__ import annotations

import random
import re

import pytest

from hasten.compress.distill.data.vote import Answer, by_majority, by_score, final_answer, normalized, read_pattern
from hasten.core.errors import InvalidOption


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2 + 2 = 4\nAnswer: 4", "4"),
        ("Answer: 3\nno, wait\n**Answer:** 4 apples\n\n", "4 apples"),
        ("answer : Paris.", "Paris."),
        ("so it is\n42\n \n", "42"),
        ("The answer: none\nfour", "four"),
        ("Answer:\n", "Answer:"),
        (" \n", None),
        ("", None),
    ],
)
def test_the_final_answer_follows_its_mark_or_is_the_last_line(text: str, answer: str | None) -> None:
    assert final_answer(text, None) == answer


@pytest.mark.parametrize(
    ("pattern", "answer"),
    [(r"\d+", "7"), (r"x = (\d+)", "7"), (r"y = (\d+)", None), (r"x( )?", None), ("#", None)],
)
def test_a_pattern_of_the_user(pattern: str, answer: str | None) -> None:
    assert final_answer("x = 3\nx = 7", re.compile(pattern)) == answer


def test_a_wrong_pattern_is_one_error() -> None:
    assert read_pattern(None) is None
    with pytest.raises(InvalidOption, match="no regular expression"):
        read_pattern("(")


def test_equal_answers_may_be_written_differently() -> None:
    assert normalized(" Paris.") == normalized("paris") == normalized("PARIS ") != normalized("Pa ris")


def test_votes_by_hand() -> None:
    answers = [Answer("a", "4", -1), Answer("b", "5", -0.1), Answer("c", "4.", -0.5), Answer("d", None, 0), Answer("e", "5", -0.2)]
    vote = by_majority(answers)
    assert vote is not None
    assert (vote.index, vote.score, vote.votes) == (2, 0.4, {"4": 2, "5": 2})  # of equal votes, the first answer's
    assert by_majority([Answer("x", None, 0)]) is None and by_majority([]) is None
    scored = by_score(answers, [0, 1, 0, 1, 0])
    assert scored is not None and (scored.index, scored.score) == (1, 1)
    assert by_score([], []) is None


def test_the_majority_is_that_of_a_count() -> None:
    generator = random.Random(1)
    for _ in range(300):
        answers = [
            Answer(str(i), generator.choice(["1", "2", "3", None]), generator.random()) for i in range(generator.randint(1, 9))
        ]
        vote, finals = by_majority(answers), [answer.final for answer in answers if answer.final]
        if not finals:
            assert vote is None
            continue
        assert vote is not None
        most = max(finals.count(final) for final in finals)
        winner = next(final for final in finals if finals.count(final) == most)
        best = max((answer for answer in answers if answer.final == winner), key=lambda answer: answer.logprob)
        assert answers[vote.index] is best and vote.score == most / len(answers)
        assert vote.votes == {final: finals.count(final) for final in finals}
