"""Scores of task results against outcomes written by hand."""

from __future__ import annotations

import pytest

from hasten.quality.task_scores import MultipleChoiceResult, differences, match, summarize
from hasten.quality.tasks import ExactMatch, MultipleChoice


@pytest.mark.parametrize(
    ("output", "ignore_case", "expected"),
    [
        ("Paris", False, True),
        ("  Paris\t\n", False, True),
        ("Lutetia", False, True),
        ("paris", False, False),
        ("paris", True, True),
        ("PARIS ", True, True),
        ("Paris.", True, False),
        ("Paris is", False, False),
        ("", False, False),
    ],
)
def test_exact_match_strips_white_space_only(output: str, ignore_case: bool, expected: bool) -> None:
    item = ExactMatch(1, "The capital of France is", ("Paris", " Lutetia "))
    assert match(item, output, ignore_case=ignore_case).outcomes == {"exact_match": expected}


@pytest.mark.parametrize(
    ("choices", "logprobs", "answer", "chosen", "chosen_norm"),
    [
        (("a", "bbbb"), (-3.0, -4.0), 0, 0, 1),  # -3 and -1 per byte
        (("a", "bbbb"), (-3.0, -12.5), 0, 0, 0),
        (("ab", "é"), (-3.0, -2.9), 1, 1, 1),  # two bytes each, although é is one character
        (("abc", "éa"), (-3.0, -3.1), 0, 0, 0),  # per character, éa would lose by more
        (("a", "b", "c"), (-2.0, -1.0, -1.0), 2, 1, 1),  # the first of equal ones
    ],
)
def test_a_choice_is_made_in_total_and_per_byte(
    choices: tuple[str, ...], logprobs: tuple[float, ...], answer: int, chosen: int, chosen_norm: int
) -> None:
    result = MultipleChoiceResult(MultipleChoice(1, "p", choices, answer), logprobs)
    assert (result.chosen, result.chosen_norm) == (chosen, chosen_norm)
    assert result.outcomes == {"acc": chosen == answer, "acc_norm": chosen_norm == answer}


EXACT = [ExactMatch(line, "p", ("yes",)) for line in range(5)]
CHOICES = [MultipleChoice(line, "p", ("a", "bb"), 0) for line in range(5, 7)]


def results(answers: str, *logprobs: tuple[float, float]) -> list:
    found: list = [match(item, "yes" if letter == "1" else "no") for item, letter in zip(EXACT, answers, strict=True)]
    return found + [MultipleChoiceResult(item, each) for item, each in zip(CHOICES, logprobs, strict=True)]


def test_scores_and_differences_count_items_by_metric() -> None:
    candidate = results("11001", (-1.0, -5.0), (-3.0, -4.0))
    reference = results("10100", (-5.0, -1.0), (-3.0, -4.0))
    scores = summarize(candidate)
    assert [(score.metric, score.num_correct, score.num_items) for score in scores] == [
        ("exact_match", 3, 5),
        ("acc", 2, 2),
        ("acc_norm", 1, 2),
    ]
    assert scores[0].share == 0.6
    found = {each.metric: each for each in differences(candidate, reference)}
    exact = found["exact_match"]
    assert (exact.both_correct, exact.only_candidate, exact.only_reference, exact.neither) == (1, 2, 1, 1)
    assert exact.difference == pytest.approx(3 / 5 - 2 / 5)
    assert (found["acc"].only_candidate, found["acc"].both_correct, found["acc"].difference) == (1, 1, 0.5)
    assert found["acc_norm"].only_candidate == 1 and found["acc_norm"].neither == 1
    assert exact.interval[0] < 0 < exact.interval[1]


def test_a_metric_without_items_has_no_score() -> None:
    only_exact = [match(item, "yes") for item in EXACT]
    assert [score.metric for score in summarize(only_exact)] == ["exact_match"]
    assert [each.metric for each in differences(only_exact, only_exact)] == ["exact_match"]
    assert summarize([]) == [] and differences([], []) == []
