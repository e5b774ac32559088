"""Task files: what is read, what is refused and with which line, and splits that keep held-out items apart."""

from __future__ import annotations

import ast
import importlib
import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from hasten.core.errors import HastenError, InvalidOption
from hasten.prompts.task import HeldOut, PromptTask, TaskSplit, read_prompt_task, task_names


def write(file: Path, *records: Any) -> Path:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def task_of(folder: Path, num_items: int) -> PromptTask:
    return read_prompt_task(write(folder / "task.jsonl", *({"input": f"{i}", "output": f"out {i}"} for i in range(num_items))))


def test_texts_and_variables_are_read(tmp_path: Path) -> None:
    task = read_prompt_task(
        write(tmp_path / "a.jsonl", {"input": "2 + 2", "output": "4", "id": 7}, "", {"input": "x", "output": ["a", "b"]})
    )
    assert [(item.line, dict(item.variables), item.references) for item in task.items] == [
        (1, {"input": "2 + 2"}, ("4",)),
        (3, {"input": "x"}, ("a", "b")),
    ]
    record = {"input": {"city": "Paris", "year": "1900"}, "output": "yes"}
    (item,) = read_prompt_task(write(tmp_path / "b.jsonl", record)).items
    assert (item.variables, item.input_text) == (record["input"], "city: Paris\nyear: 1900")


GOOD = {"input": "a", "output": "b"}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("{", "line 2 of {file}: this is not JSON"),
        ("[" * 100_000, "line 2 of {file}: this is not JSON"),
        ([1], "line 2 of {file}: this is not a JSON object"),
        ({"inputs": "a", "output": "b"}, "line 2 of {file}: \"input\" is missing, and 'inputs' has no meaning"),
        ({"input": "c"}, 'line 2 of {file}: "output" is missing'),
        ({"input": 3, "output": "b"}, 'line 2 of {file}: "input" has the wrong type'),
        ({"input": {}, "output": "b"}, 'line 2 of {file}: "input" has the wrong type'),
        ({"input": {"a b": "x"}, "output": "b"}, 'line 2 of {file}: "input" has a wrong variable'),
        ({"input": {"a": 3}, "output": "b"}, 'line 2 of {file}: "input" has a wrong variable'),
        ({"input": " ", "output": "b"}, 'line 2 of {file}: "input" is blank'),
        ('{"input": "\\ud800", "output": "b"}', 'line 2 of {file}: "input" has a wrong variable'),
        ({"input": "c", "output": 4}, 'line 2 of {file}: "output" is not a text'),
        ({"input": "c", "output": []}, 'line 2 of {file}: "output" is not a text'),
        ({"input": "c", "output": ["d", " "]}, 'line 2 of {file}: "output" is not a text'),
        ({"input": {"question": "c"}, "output": "b"}, 'line 2 of {file}: "input" has other variables'),
        (GOOD, "line 2 of {file}: the input of line 1 stands here again"),
        ({"input": "a", "output": "other"}, "line 2 of {file}: the input of line 1 stands here again"),
    ],
)
def test_a_wrong_line_is_one_sentence_with_its_number(tmp_path: Path, record: Any, words: str) -> None:
    file = write(tmp_path / "task.jsonl", GOOD, record)
    with pytest.raises(InvalidOption) as caught:
        read_prompt_task(file)
    assert str(caught.value).startswith(words.format(file=file)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "empty.jsonl").write_text(content)
    with pytest.raises(InvalidOption, match="is empty"):
        read_prompt_task(tmp_path / "empty.jsonl")


def parts(split: TaskSplit) -> list[set[int]]:
    return [{item.line for item in part} for part in (split.train, split.validation, split.held_out.use())]


def faults(found: list[set[int]], num_items: int) -> list[str]:
    """Return what is wrong with a split: items in two parts, or in none."""
    wrong = ["leak"] if sum(map(len, found)) > len(set.union(*found)) else []
    return wrong + (["lost"] if set.union(*found) != set(range(1, num_items + 1)) else [])


def test_parts_are_disjoint_complete_and_depend_on_the_seed_alone(tmp_path: Path) -> None:
    task = task_of(tmp_path, 103)
    for seed in range(20):
        found = parts(task.split(seed, (0.5, 0.3, 0.2)))
        assert (faults(found, 103), [len(part) for part in found]) == ([], [51, 31, 21])  # 51.5, 30.9, 20.6: largest remainders
        assert parts(task.split(seed, (0.5, 0.3, 0.2))) == found
    assert parts(task.split(0)) != parts(task.split(1))
    # An item of the first half would be held out in about half of the seeds.
    num_held_out = sum(1 in parts(task.split(seed, (0.25, 0.25, 0.5)))[2] for seed in range(200))
    assert 70 <= num_held_out <= 130


def test_the_order_of_the_file_does_not_matter(tmp_path: Path) -> None:
    task = task_of(tmp_path, 20)
    backwards = PromptTask(task.file, task.items[::-1])
    assert parts(task.split(3)) == parts(backwards.split(3))


def test_a_leak_is_seen() -> None:
    """Negative control."""
    assert faults([{1, 2}, {3}, {3, 4}], 4) == ["leak"]
    assert faults([{1, 2}, {3}, set()], 4) == ["lost"]


def test_held_out_items_are_read_once(tmp_path: Path) -> None:
    held_out = task_of(tmp_path, 8).split(0).held_out
    assert (len(held_out), len(held_out.use()), len(held_out)) == (2, 2, 2)
    for _ in range(2):
        with pytest.raises(HastenError, match="held-out items were read already"):
            held_out.use()


def test_of_many_threads_one_reads_the_held_out_items(tmp_path: Path) -> None:
    items = task_of(tmp_path, 3).items
    for _ in range(50):
        held_out, barrier, read = HeldOut(items), threading.Barrier(4), list[int]()

        def use(held_out: HeldOut = held_out, barrier: threading.Barrier = barrier, read: list[int] = read) -> None:
            barrier.wait(10)
            try:
                read.append(len(held_out.use()))
            except HastenError:
                read.append(0)

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(read) == [0, 0, 0, 3]


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.5, 0.6, 0.2), (-0.1, 0.6, 0.5), (float("nan"), 0.5, 0.5)])
def test_wrong_fractions_are_refused(tmp_path: Path, fractions: tuple[float, ...]) -> None:
    with pytest.raises(InvalidOption, match="fractions of the split"):
        task_of(tmp_path, 9).split(0, fractions)


def test_a_part_without_items_is_refused_unless_it_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match=r"too few items.*none would be in held_out"):
        task_of(tmp_path, 3).split(0, (0.5, 0.45, 0.05))
    assert [len(part) for part in parts(task_of(tmp_path, 3).split(0, (0.0, 0.0, 1.0)))] == [0, 0, 3]


@pytest.mark.parametrize("name", ["docstring_style", "label_words", "next_identifier"])
def test_the_tasks_that_ship_are_those_of_their_seed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    script = importlib.import_module("prompt_tasks")
    task = read_prompt_task(Path(name))
    assert task.file.read_text(encoding="utf-8") == script.task_text(name, script.NUM_ITEMS)
    assert len(task.items) == 600 and task.variables == ("input",) and task.file.stat().st_size < 100_000
    assert name in task_names() and all(len(item.references) == 1 for item in task.items)
    (tmp_path / name).write_text('{"input": "mine", "output": "x"}')
    assert read_prompt_task(Path(name)).items[0].input_text == "mine"  # a file goes first


def test_shipped_snippets_and_lines_are_python() -> None:
    """The labels are those of Python's own grammar, and each snippet is whole with the name that it stops before."""
    kinds = {
        "loop": (ast.For, ast.While),
        "branch": ast.If,
        "assignment": (ast.Assign, ast.AugAssign),
        "import": (ast.Import, ast.ImportFrom),
        "return": ast.Return,
        "call": ast.Expr,
    }
    for item in read_prompt_task(Path("label_words")).items:
        line = item.input_text.strip().removeprefix("el")
        (statement,) = ast.parse(line + (" pass" if line.endswith(":") else "")).body
        assert isinstance(statement, kinds[item.references[0]]), line
        assert not isinstance(statement, ast.Expr) or isinstance(statement.value, ast.Call)
    for item in read_prompt_task(Path("next_identifier")).items:
        (name,), text = item.references, item.input_text
        is_block = text.split("\n")[-1].strip().split()[0] in ("for", "if")
        tree = ast.parse(f"{text} {name}{': pass' if is_block else ''}")
        assert name in re.findall(r"\w+", text) and name in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for item in read_prompt_task(Path("docstring_style")).items:
        (line,) = item.references
        (function,) = ast.parse(item.input_text + "    pass").body
        assert isinstance(function, ast.FunctionDef)
        words = {*function.name.split("_"), *(each.arg for each in function.args.args)}
        assert set(line.lower().rstrip(".").split()) <= words | {"return", "the", "whether", "is"}


def test_a_name_that_no_task_has_is_one_sentence() -> None:
    with pytest.raises(InvalidOption, match=r"no such task: got 'label_word'; .*docstring_style, label_words.*'label_words'"):
        read_prompt_task(Path("label_word"))
