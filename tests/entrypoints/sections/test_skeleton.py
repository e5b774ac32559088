"""Skeletons: headings of the caller, and outlines that a model wrote."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten import InvalidRequest
from hasten.entrypoints.sections.skeleton import (
    MAX_POINT,
    MalformedOutline,
    check_headings,
    check_max_sections,
    outline_instruction,
    parse_outline,
)


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("1. Set clear goals\n2. Plan the day\n3. Rest well", ("Set clear goals", "Plan the day", "Rest well")),
        ("1) a\n2) b\n3) c\n4) d", ("a", "b", "c", "d")),
        ("  1. **Bold one**:\n 2. two.\n3. three  \n", ("Bold one", "two", "three")),
        ("1、明确目标\n2、制定计划\n3、坚持练习。", ("明确目标", "制定计划", "坚持练习")),
        ("1.one\n2.two\n3.three", ("one", "two", "three")),
    ],
)
def test_numbered_lines_are_an_outline(text: str, points: tuple[str, ...]) -> None:
    assert parse_outline(text, 8) == points


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "0 points"),
        ("1. a\n2. b", "2 points"),
        ("\n".join(f"{i}. p{i}" for i in range(1, 10)), "9 points, not 3 to 8"),
        ("1. a\n3. b\n4. c", "line 2"),
        ("1. a\n2. b\n\n3. c", "line 3"),
        ("1. a\nb\n2. c", "line 2"),
        ("Here it is:\n1. a\n2. b\n3. c", "line 1"),
        ("1. a\n2. a\n3. c", "repeats"),
        ("1. a\n2. **\n3. c", "line 2"),
        (f"1. a\n2. {'b' * (MAX_POINT + 1)}\n3. c", "point 2 of the model's outline is too long"),
        (f"1. a\n2. b\n3. {'c ' * 13}", "point 3 of the model's outline is too long"),
        ("- a\n- b\n- c", "line 1"),
        ("1. a\n2. b\x07b\n3. c", "line 2"),
    ],
)
def test_anything_else_is_malformed(text: str, reason: str) -> None:
    with pytest.raises(MalformedOutline, match=re.escape(reason)):
        parse_outline(text, 8)


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("12. )\nab：、*\u4e2d\ud800\x00"), max_size=40))
def test_no_text_raises_another_error(text: str) -> None:
    with suppress(MalformedOutline):
        points = parse_outline(text, 10)
        assert 3 <= len(points) == len(set(points)) <= 10
        numbered = [line for line in text.splitlines() if line.strip()]
        assert len(numbered) == len(points) and all(p in line for p, line in zip(points, numbered, strict=True))


@pytest.mark.parametrize(
    ("headings", "message"),
    [
        ("a;b", "wrong type"),
        (b"ab", "wrong type"),
        ([], "wrong number"),
        ([str(i) for i in range(9)], "wrong number"),
        (["a", " "], "no heading"),
        (["a", 1], "no heading"),
        (["a\nb"], "no heading"),
        (["a" * 201], "no heading"),
        (["\ud800"], "no heading"),
        (["a", "b", " a"], "more than once"),
    ],
)
def test_wrong_headings_are_one_sentence(headings: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        check_headings(headings, 8)


def test_headings_lose_outer_spaces() -> None:
    assert check_headings([" a ", "b c"], 8) == ("a", "b c")


@pytest.mark.parametrize("value", [2, 65, 3.0, True, None])
def test_max_sections_is_checked(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="max_sections is out of range"):
        check_max_sections(value)


def test_the_instruction_is_in_the_language_of_the_question() -> None:
    assert "3 to 8 numbered points" in outline_instruction("How do plants grow?", 8)
    assert "3 to 10 numbered points" in outline_instruction("How do plants grow?", 64)
    assert "3到5个编号的要点" in outline_instruction("如何用 Python 写爬虫？", 5)
