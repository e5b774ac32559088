"""Task files: what is read, and the one sentence for every wrong line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hasten.core.errors import InvalidOption
from hasten.quality.tasks import ExactMatch, MultipleChoice, read_task

GOOD = '{"prompt": "2 + 2 =", "answer": "4"}'


def write(folder: Path, *lines: str | dict[str, Any]) -> Path:
    file = folder / "task.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n", encoding="utf-8")
    return file


def test_both_kinds_are_read_in_the_order_of_the_file(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        GOOD + "\r",
        "",
        {"question": "Paris is in", "answer": ["France", "Île-de-France"], "id": 7, "question_id": "q"},
        {"question": "Water is", "choices": ["wet", "dry"], "answer": 1},
        {"prompt": "Water is\u2028", "choices": [" wet", "dry", "7"], "answer": "wet"},
        {"prompt": "p", "choices": ["1", "2", "3"], "answer": "3", "subject": None},
    )
    assert read_task(file) == [
        ExactMatch(1, "2 + 2 =", ("4",)),
        ExactMatch(3, "Paris is in", ("France", "Île-de-France")),
        MultipleChoice(4, "Water is", ("wet", "dry"), 1),
        MultipleChoice(5, "Water is\u2028", (" wet", "dry", "7"), 0),
        MultipleChoice(6, "p", ("1", "2", "3"), 2),
    ]


PAIR = ["a", "b"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{'prompt': 1}", "this is not JSON"),
        ('{"prompt": "x", "answer": "y"', "this is not JSON"),
        ("[" * 100_000, "this is not JSON"),
        ('["prompt", "answer"]', "this is not a JSON object"),
        ({"answer": "x"}, '"prompt" is missing: got the keys'),
        ({"prompt": "a", "question": "b", "answer": "x"}, "which mean the same"),
        ({"prompt": ["a"], "answer": "x"}, '"prompt" is not a text'),
        ({"question": " \n", "answer": "x"}, '"question" is not a text'),
        ('{"prompt": "\\ud800", "answer": "x"}', '"prompt" is not a text'),
        ({"prompt": "a", "answers": ["x"]}, '"answer" is missing'),
        ({"prompt": "a", "answer": 4}, "numbers are written as texts"),
        ({"prompt": "a", "answer": []}, '"answer" is not a text'),
        ({"prompt": "a", "answer": ["x", ""]}, '"answer" is not a text'),
        ({"prompt": "a", "answer": {"text": "x"}}, '"answer" is not a text'),
        ({"prompt": "a", "answer": 0, "choises": PAIR}, 'allowed: "choices"'),
        ({"prompt": "a", "answer": 0, "choices": "ab"}, '"choices" are not a list of texts'),
        ({"prompt": "a", "answer": 0, "choices": ["a"]}, "two texts or more"),
        ({"prompt": "a", "answer": 0, "choices": ["a", 5]}, '"choices" are not a list of texts'),
        ({"prompt": "a", "answer": 0, "choices": ["a", " "]}, '"choices" are not a list of texts'),
        ({"prompt": "a", "answer": 0, "choices": ["a", "b", "a "]}, "repeat a text"),
        ({"prompt": "a", "answer": 0, "choices": {"text": PAIR}}, '"choices" are not a list of texts'),
        ({"prompt": "a", "choices": PAIR}, '"answer" is missing'),
        ({"prompt": "a", "answer": 2, "choices": PAIR}, "got 2; allowed: an index from 0 to 1, or the text of a choice"),
        ({"prompt": "a", "answer": -1, "choices": PAIR}, "not one of the choices"),
        ({"prompt": "a", "answer": True, "choices": PAIR}, "not one of the choices"),
        ({"prompt": "a", "answer": 1.0, "choices": PAIR}, "not one of the choices"),
        ({"prompt": "a", "answer": "c", "choices": PAIR}, "not one of the choices"),
        ({"prompt": "a", "answer": ["a"], "choices": PAIR}, "not one of the choices"),
        ({"prompt": "a", "answer": "x" * 10**6, "choices": PAIR}, "not one of the choices"),
    ],
)
def test_a_wrong_line_is_refused_in_one_sentence(tmp_path: Path, line: str | dict[str, Any], expected: str) -> None:
    file = write(tmp_path, GOOD, line, GOOD)
    with pytest.raises(InvalidOption) as error:
        read_task(file)
    message = str(error.value)
    assert message.startswith(f"line 2 of {file}: ")
    assert expected in message and "allowed: " in message
    assert len(message) < 700 and "\n" not in message


def test_a_file_without_items_is_refused(tmp_path: Path) -> None:
    for content in ("", "\n \n"):
        file = write(tmp_path, content)
        with pytest.raises(InvalidOption, match=r"task\.jsonl is empty"):
            read_task(file)
    with pytest.raises(InvalidOption, match="cannot be read"):
        read_task(tmp_path / "missing.jsonl")
