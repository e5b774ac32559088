"""Prompts and pairs of every form are read, and the first wrong line is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hasten.compress.distill.data.example_pairs import Candidates, Pair, read_candidates, read_pairs
from hasten.compress.distill.data.prompt_file import PromptRecord, read_prompts
from hasten.core.errors import InvalidOption

MESSAGES = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})


def test_only_a_newline_ends_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("été\u2028naïve\x0cx\x85\r\n\r\n二\r\n".encode())
    assert [record.prompt for record in read_prompts(tmp_path / "p.txt")] == ["été\u2028naïve\x0cx\x85", "二"]


def test_a_text_file_has_a_prompt_per_line(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\n\n  two  \n")
    assert read_prompts(tmp_path / "p.txt") == [PromptRecord("one", "one", {}), PromptRecord("  two  ", "  two  ", {})]


def test_records_of_every_form(tmp_path: Path) -> None:
    records = [{"input": "a", "output": "old", "id": 7}, {"prompt": "b", "input": "other"}, {"messages": list(MESSAGES)}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert read_prompts(tmp_path / "p.jsonl") == [
        PromptRecord("a", "a", {"id": 7}),
        PromptRecord("b", "b", {}),
        PromptRecord(MESSAGES, "Be brief.\n\nHi", {"messages": list(MESSAGES)}),
    ]


WRONG = [
    "x",
    "[]",
    "{}",
    '{"input": 3}',
    '{"input": " "}',
    '{"input": "\\ud800"}',
    '{"input": "a", "id": NaN}',
    '{"input": "a", "id": "\\ud800"}',
    "[" * 100_000,
]


@pytest.mark.parametrize(
    "line",
    [
        *WRONG,
        '{"messages": []}',
        '{"messages": "x"}',
        '{"messages": [3]}',
        '{"messages": [{"role": "user"}]}',
        '{"messages": [{"role": "user", "content": 3}]}',
        '{"messages": [{"role": "robot", "content": "x"}]}',
        '{"messages": [{"role": "assistant", "content": "x"}]}',
    ],
)
def test_the_first_wrong_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "p.jsonl").write_text(f'{{"input": "a"}}\n\n{line}\nworse\n')
    with pytest.raises(InvalidOption, match=r"line 3 of .*p\.jsonl is wrong.*messages"):
        read_prompts(tmp_path / "p.jsonl")


@pytest.mark.parametrize("line", [*WRONG, '{"input": "a"}', '{"input": "a", "output": " "}'])
def test_the_first_wrong_pair_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "p.jsonl").write_text(f'{{"input": "a", "output": "b"}}\n{line}\n')
    for read in (read_pairs, read_candidates):
        with pytest.raises(InvalidOption, match=r"line 2 of .* is wrong"):
            read(tmp_path / "p.jsonl")


@pytest.mark.parametrize("outputs", ["[]", '"x"', "[3]", '["x", " "]'])
def test_wrong_outputs_are_named(tmp_path: Path, outputs: str) -> None:
    (tmp_path / "p.jsonl").write_text(f'{{"input": "a", "outputs": {outputs}}}\n')
    with pytest.raises(InvalidOption, match=r"line 1 of .* is wrong"):
        read_candidates(tmp_path / "p.jsonl")


def test_outputs_of_one_input_are_joined_without_copies(tmp_path: Path) -> None:
    lines = ['{"input": "a", "output": "1"}', '{"input": "b", "outputs": ["2", "2", "3"]}', '{"input": "a", "outputs": ["4", "1"]}']
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    assert read_candidates(tmp_path / "p.jsonl") == [Candidates("a", ("1", "4")), Candidates("b", ("2", "3"))]
    (tmp_path / "q.jsonl").write_text(lines[0])
    assert read_pairs(tmp_path / "q.jsonl") == [Pair("a", "1")]
