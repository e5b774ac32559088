"""The best of several answers: the exact request, the three rules, and the record."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from tests.compress.distill.data.conftest import Record
from tests.compress.distill.data.scripted_teacher import ScriptedTeacher, text

from hasten.compress.distill.data.ask_templates import AskTemplates, read_ask_templates
from hasten.compress.distill.data.instruct import TRIAL, choose_answers, read_rule
from hasten.compress.distill.data.prompt_file import PromptRecord
from hasten.compress.distill.data.text_teacher import TeacherText
from hasten.core.errors import InvalidOption
from hasten.core.sampling_params import SamplingParams

MESSAGES = ({"role": "user", "content": "Hi"},)
ANSWERS = [
    text("two and two\nAnswer: 4 ", logprob=-0.9),
    text("I think\nAnswer: 5", logprob=-0.1),
    text("2 + 2\nAnswer: 4", logprob=-0.5),
    text("it is cut\nAnswer: 5", "length", -0.01),
    text("  \n", logprob=0.0),
]
PARAMS = SamplingParams(n=5, max_tokens=9)


@pytest.fixture(scope="module")
def templates() -> AskTemplates:
    return read_ask_templates("instruct", TRIAL)


def chosen(record: Record, templates: AskTemplates, **options: Any) -> list[dict[str, Any]]:
    teacher = ScriptedTeacher(lambda request, i: ANSWERS[i])
    prompts = [PromptRecord("2 + 2?", "2 + 2?", {"id": 3})]
    return list(choose_answers(record(teacher), prompts, PARAMS, templates, **{"dropped": Counter(), **options}))


def test_the_prompt_is_asked_once_for_all_answers(record: Record, templates: AskTemplates) -> None:
    teacher = ScriptedTeacher(lambda request, i: ANSWERS[i])
    prompts = [PromptRecord("2 + 2?", "2 + 2?", {}), PromptRecord(MESSAGES, "Hi", {})]
    found = list(choose_answers(record(teacher), prompts, PARAMS, templates, seed=2, dropped=Counter()))
    assert teacher.prompts == [
        "Solve the problem. Think step by step and write down each step. Write the result in a last line that begins with "
        '"Answer:",\n'
        "and write nothing after it.\n\nProblem: 2 + 2?\n\nSolution:",
        MESSAGES,
    ]
    assert [one["input"] for one in found] == ["2 + 2?", "Hi"]
    assert all(request.params == PARAMS.replace(logprobs=0, seed=request.params.seed) for request in teacher.asked)


def test_the_majority_wins_with_its_likeliest_reasoning(record: Record, templates: AskTemplates) -> None:
    dropped = Counter[str]()
    (found,) = chosen(record, templates, dropped=dropped)
    assert found == {
        "id": 3,
        "input": "2 + 2?",
        "output": "2 + 2\nAnswer: 4",
        "answer": "4",
        "reasoning": "2 + 2\nAnswer: 4",
        "votes": {"4": 2, "5": 1},
        "score": 2 / 3,
        "mean_logprob": -0.5,
        "num_tokens": len(ANSWERS[2].text),
    }
    assert dropped == {"answers that were cut or blank": 2}
    (short,) = chosen(record, templates, answers_only=True)
    assert short == {**found, "output": "4"}


def test_the_likeliest_wins_by_logprob(record: Record, templates: AskTemplates) -> None:
    (found,) = chosen(record, templates, rule="logprob")
    assert (found["answer"], found["score"]) == ("5", -0.1)


def test_the_users_check_decides(record: Record, templates: AskTemplates) -> None:
    asked = []

    def check(input_text: str, output: str) -> float:
        asked.append((input_text, output))
        return float(output.startswith("I"))

    (found,) = chosen(record, templates, rule="check", check=check, min_score=1)
    assert (found["answer"], found["score"], found["votes"]) == ("5", 1.0, {"4": 2, "5": 1})
    assert asked == [("2 + 2?", answer.text.strip()) for answer in ANSWERS[:3]]


def test_prompts_without_a_good_answer_are_dropped(record: Record, templates: AskTemplates) -> None:
    dropped = Counter[str]()
    assert chosen(record, templates, min_score=0.7, dropped=dropped) == []
    assert dropped["prompts whose best answer is below the minimum"] == 1
    blank = ScriptedTeacher(lambda request, i: text(""), fits=lambda request: request.prompt != MESSAGES)
    prompts = [PromptRecord("a", "a", {}), PromptRecord(MESSAGES, "Hi", {})]
    dropped = Counter[str]()
    assert list(choose_answers(record(blank), prompts, PARAMS, templates, dropped=dropped)) == []
    assert dropped == {"answers that were cut or blank": 5, "prompts without a final answer": 1, "too long for the context": 1}


def test_a_thought_is_part_of_the_reasoning_only(record: Record, templates: AskTemplates) -> None:
    teacher = ScriptedTeacher(lambda request, i: TeacherText("Answer: 4", "stop", 3, -0.1, "let me see"))
    (found,) = choose_answers(record(teacher), [PromptRecord("a", "a", {})], PARAMS, templates, dropped=Counter())
    assert (found["output"], found["reasoning"]) == ("Answer: 4", "let me see\n\nAnswer: 4")


def test_rules_have_names() -> None:
    assert read_rule("logprob") == "logprob"
    with pytest.raises(InvalidOption, match="Did you mean 'majority'"):
        read_rule("majoriti")
