"""Feedback: the exact questions, expected scores, both orders, and what is dropped."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.compress.distill.data.conftest import Record
from tests.compress.distill.data.scripted_teacher import ScriptedTeacher, text

from hasten import LLM
from hasten.compress.distill.data.ask_templates import AskTemplates, read_ask_templates
from hasten.compress.distill.data.example_pairs import Candidates
from hasten.compress.distill.data.feedback import TRIAL, Feedback, compare_outputs, expected_score, score_outputs
from hasten.compress.distill.data.model_teacher import ModelTeacher
from hasten.compress.distill.data.text_teacher import LabelRequest, TextRequest
from hasten.core.sampling_params import SamplingParams

PARAMS = SamplingParams(temperature=0, max_tokens=12)
CANDIDATES = [Candidates("task", ("good", "bad", "middling")), Candidates("alone", ("x",)), Candidates("other", ("bad", "worse"))]
GRADES = {"good": 0.9, "middling": 0.5, "bad": 0.2, "worse": 0.1}


@pytest.fixture(scope="module")
def templates() -> AskTemplates:
    return read_ask_templates("feedback", TRIAL)


def grade(request: LabelRequest) -> tuple[float, ...]:
    """Five scores whose expectation rises with the grade of the output."""
    share = GRADES[str(request.prompt).partition("Answer: ")[2].partition("\n")[0]]
    return (1 - share, 0.0, 0.0, 0.0, share)


def test_scores_are_expectations_and_the_extremes_are_paired(record: Record, templates: AskTemplates) -> None:
    teacher, dropped = ScriptedTeacher(lambda request, i: text(f" review {len(teacher.asked)}\n"), grade), Counter[str]()
    feedback = Feedback(record(teacher), PARAMS, templates)
    found = list(score_outputs(feedback, CANDIDATES, dropped=dropped))
    assert [(one["input"], one["chosen"], one["rejected"]) for one in found] == [("task", "good", "bad"), ("other", "bad", "worse")]
    assert found[0]["chosen_score"] == pytest.approx(0.1 * 1 + 0.9 * 5)
    assert found[0]["rejected_score"] == pytest.approx(0.8 * 1 + 0.2 * 5)
    assert dropped["inputs with a single output"] == 1 and found[0]["critique"].startswith("review")
    critiques = [request for request in teacher.asked if isinstance(request, TextRequest)]
    scores = [request for request in teacher.asked if isinstance(request, LabelRequest)]
    assert len(critiques) == len(scores) == 5 and all(request.labels == ("1", "2", "3", "4", "5") for request in scores)
    for asked, scored in zip(critiques, scores, strict=True):
        assert str(scored.prompt).startswith(f"{asked.prompt} review ")
        assert str(scored.prompt).endswith("\n\nScore of the answer, from 1 (useless) to 5 (perfect):")
    assert str(critiques[0].prompt).endswith("\n\nInstruction: task\n\nAnswer: good\n\nReview:")


def test_pairs_without_a_clear_difference_are_dropped(record: Record, templates: AskTemplates) -> None:
    dropped = Counter[str]()
    feedback = Feedback(record(ScriptedTeacher(choose=grade)), PARAMS, templates)
    (found,) = score_outputs(feedback, CANDIDATES, min_margin=0.5, dropped=dropped)
    assert found["input"] == "task" and dropped["inputs without a clear difference"] == 1
    equal = Feedback(record(ScriptedTeacher(choose=lambda request: (0.2,) * 5)), PARAMS, templates)
    assert list(score_outputs(equal, CANDIDATES, dropped=Counter())) == []


def test_outputs_that_do_not_fit_are_left_out(record: Record, templates: AskTemplates) -> None:
    dropped = Counter[str]()
    teacher = ScriptedTeacher(choose=grade, fits=lambda request: "Answer: good" not in str(request.prompt))
    found = list(score_outputs(Feedback(record(teacher), PARAMS, templates), CANDIDATES, dropped=dropped))
    assert [one["chosen"] for one in found] == ["middling", "bad"]
    assert dropped["outputs whose prompt is too long for the context"] == 1


def places(request: LabelRequest) -> tuple[str, str]:
    first, second = str(request.prompt).partition("Answer A: ")[2].split("\n\n")[:2]
    return first, second.removeprefix("Answer B: ")


def test_both_orders_are_asked_and_only_agreeing_verdicts_are_kept(record: Record, templates: AskTemplates) -> None:
    def verdict(request: LabelRequest) -> tuple[float, float]:
        """Prefers the better output, but of near ones the first place."""
        first, second = (GRADES[output] for output in places(request))
        share = 0.5 + 0.4 * (first - second) + 0.13
        return share, 1 - share

    teacher, dropped = ScriptedTeacher(choose=verdict), Counter[str]()
    found = list(compare_outputs(Feedback(record(teacher), PARAMS, templates), CANDIDATES, dropped=dropped))
    asked = [places(request) for request in teacher.asked if isinstance(request, LabelRequest)]
    pairs = [("good", "bad"), ("good", "middling"), ("bad", "middling"), ("bad", "worse")]
    assert asked == [order for one, other in pairs for order in ((one, other), (other, one))]
    assert all(request.labels == ("A", "B") for request in teacher.asked if isinstance(request, LabelRequest))
    # A difference above 0.325 outweighs the place.
    assert [(one["chosen"], one["rejected"]) for one in found] == [("good", "bad"), ("good", "middling")]
    assert found[0]["chosen_score"] == pytest.approx(0.78) and found[0]["rejected_score"] == pytest.approx(0.22)
    assert dropped == {"inputs with a single output": 1, "pairs whose verdict depends on the order": 2}


def test_a_judge_that_likes_a_place_decides_nothing(record: Record, templates: AskTemplates) -> None:
    for share in (0.9, 0.5, 0.1):
        teacher = ScriptedTeacher(choose=lambda request, share=share: (share, 1 - share))
        assert list(compare_outputs(Feedback(record(teacher), PARAMS, templates), CANDIDATES, dropped=Counter())) == []


def test_scores_are_those_of_the_models_labels(record: Record, templates: AskTemplates, demo: LLM) -> None:
    feedback = Feedback(record(ModelTeacher(demo)), PARAMS, templates)
    candidates = [Candidates("def name(self):", ("return self.name", "pass", "x = 1"))]
    (found,) = score_outputs(feedback, candidates, dropped=Counter())
    expected = {}
    for output in candidates[0].outputs:
        variables = {"input": "def name(self):", "output": output, "highest": "5"}
        question = templates.render("critique", variables)
        review = demo.generate(question, PARAMS, use_tqdm=False)[0].outputs[0].text.strip()
        prompt = templates.render("score", {**variables, "critique": review})
        choice = demo.choose(prompt, [f" {score}" for score in range(1, 6)], normalize="sum")
        expected[output] = sum((i + 1) * share for i, share in enumerate(choice.probabilities))
    assert len(set(expected.values())) == 3
    assert found["chosen_score"] == pytest.approx(max(expected.values()), abs=1e-6)
    assert found["rejected_score"] == pytest.approx(min(expected.values()), abs=1e-6)
    assert expected[found["chosen"]] == max(expected.values()) and expected[found["rejected"]] == min(expected.values())


def test_an_expectation_by_hand() -> None:
    assert expected_score((0.5, 0.25, 0.25)) == 0.5 * 1 + 0.25 * 2 + 0.25 * 3
