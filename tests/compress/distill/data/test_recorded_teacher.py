"""A recorded teacher is asked in batches, in order, and nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.compress.distill.data.conftest import Record
from tests.compress.distill.data.scripted_teacher import ScriptedTeacher, text

from hasten.compress.distill.data.text_teacher import LabelRequest, TextRequest
from hasten.core.errors import HastenError, InvalidOption
from hasten.core.sampling_params import SamplingParams


def requests(count: int, n: int = 1) -> list[TextRequest]:
    return [TextRequest(f"p{i}", SamplingParams(seed=i, n=n)) for i in range(count)]


def test_texts_come_in_order_and_batches_hold_as_many_texts_as_they_may(record: Record) -> None:
    teacher = ScriptedTeacher(batch_size=4)
    found = list(record(teacher).write(requests(5, n=2)))
    assert [[one.text for one in texts] for texts in found] == [[f"p{i}|{i}|0", f"p{i}|{i}|1"] for i in range(5)]
    assert [len(batch) for batch in teacher.batches] == [2, 2, 1]


def test_requests_are_read_batch_by_batch(record: Record) -> None:
    teacher, read = ScriptedTeacher(batch_size=2), []
    found = record(teacher).write(read.append(i) or request for i, request in enumerate(requests(6)))
    next(found)
    assert read == [0, 1]


def test_nothing_is_asked_twice(record: Record, tmp_path: Path) -> None:
    first = ScriptedTeacher(choose=lambda request: (0.25, 0.75))
    recorded = record(first, "kept")
    expected = list(recorded.write([*requests(3), *requests(3)]))
    label = LabelRequest("p0", ("a", "b"))
    assert list(recorded.choose([label])) == [(0.25, 0.75)]
    assert len(first.asked) == 4
    (tmp_path / "copy").write_bytes((tmp_path / "kept").read_bytes())
    second = ScriptedTeacher()
    again = record(second, "copy")
    assert list(again.write([*requests(4), *requests(3)]))[4:] == expected[:3]
    assert list(again.choose([label])) == [(0.25, 0.75)]
    assert second.prompts == ["p3"]


@pytest.mark.parametrize(
    "other",
    [
        TextRequest("p1", SamplingParams(seed=0)),
        TextRequest("p0", SamplingParams(seed=1)),
        TextRequest("p0", SamplingParams(seed=0, temperature=0.5)),
        TextRequest(({"role": "user", "content": "p0"},), SamplingParams(seed=0)),
    ],
)
def test_another_request_has_its_own_answer(record: Record, other: TextRequest) -> None:
    teacher = ScriptedTeacher()
    recorded = record(teacher)
    assert list(recorded.write(requests(1))) != [] and list(recorded.write([other])) != []
    assert len(teacher.asked) == 2


def test_another_teacher_has_its_own_answers(record: Record, tmp_path: Path) -> None:
    assert len(list(record(ScriptedTeacher(), "kept").write(requests(1)))) == 1
    (tmp_path / "copy").write_bytes((tmp_path / "kept").read_bytes())
    other = ScriptedTeacher(name="other")
    assert len(list(record(other, "copy").write(requests(1)))) == 1
    assert other.prompts == ["p0"]


def test_what_does_not_fit_is_not_asked_and_has_no_text(record: Record) -> None:
    teacher = ScriptedTeacher(fits=lambda request: request.prompt != "p1")
    recorded = record(teacher)
    assert [len(texts) for texts in recorded.write(requests(3))] == [1, 0, 1]
    assert [len(texts) for texts in recorded.write(requests(3))] == [1, 0, 1]
    assert teacher.prompts == ["p0", "p2"]


def test_answers_of_a_batch_are_kept_before_the_next_one_is_asked(record: Record, tmp_path: Path) -> None:
    def fail_at_p2(request: TextRequest, i: int) -> object:
        if request.prompt == "p2":
            raise HastenError("no")
        return text("x")

    recorded = record(ScriptedTeacher(fail_at_p2, batch_size=2), "kept")
    with pytest.raises(HastenError, match="no"):
        list(recorded.write(requests(4)))
    assert len((tmp_path / "kept").read_text().splitlines()) == 3  # the settings and two answers


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        [{}],
        ["x"],
        [{"text": 1, "finish_reason": "stop", "num_tokens": 1, "mean_logprob": None, "reasoning": None}],
        [{"text": "x", "finish_reason": "stop", "num_tokens": True, "mean_logprob": None, "reasoning": None}],
        [{"text": "x", "finish_reason": "stop", "num_tokens": 1, "mean_logprob": "1", "reasoning": None}],
        [{"text": "x", "finish_reason": "stop", "num_tokens": 1, "mean_logprob": None, "reasoning": 2}],
        [{"text": "x", "finish_reason": "stop", "num_tokens": 1, "mean_logprob": None, "reasoning": None}] * 2,
    ],
)
def test_a_damaged_answer_is_one_error(record: Record, tmp_path: Path, answer: object) -> None:
    list(record(ScriptedTeacher(), "kept").write(requests(1)))
    header, line = (tmp_path / "kept").read_text().splitlines()
    damaged = json.dumps({"key": json.loads(line)["key"], "answer": answer})
    (tmp_path / "copy").write_text(f"{header}\n{damaged}\n")
    with pytest.raises(InvalidOption, match=r"an answer in .* is damaged"):
        list(record(ScriptedTeacher(), "copy").write(requests(1)))


@pytest.mark.parametrize("answer", [None, [0.5], [0.5, "x"], [0.5, 2.0], [0.5, -0.1], {"a": 1}])
def test_damaged_probabilities_are_one_error(record: Record, tmp_path: Path, answer: object) -> None:
    label = LabelRequest("p0", ("a", "b"))
    list(record(ScriptedTeacher(choose=lambda request: (0.5, 0.5)), "kept").choose([label]))
    header, line = (tmp_path / "kept").read_text().splitlines()
    damaged = json.dumps({"key": json.loads(line)["key"], "answer": answer})
    (tmp_path / "copy").write_text(f"{header}\n{damaged}\n")
    with pytest.raises(InvalidOption, match=r"an answer in .* is damaged"):
        list(record(ScriptedTeacher(), "copy").choose([label]))
