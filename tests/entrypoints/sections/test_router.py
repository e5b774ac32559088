"""The router of sections on labelled questions: written before its rules, while they grew, and after them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hasten.entrypoints.sections.router import MAX_READ, Route, route

FOLDER = Path(__file__).parent


def questions(name: str) -> list[tuple[str, bool]]:
    found = json.loads((FOLDER / name).read_text(encoding="utf-8"))["questions"]
    return [(each["text"], each["suits"]) for each in found]


def num_right(router: Callable[[str], Route], name: str) -> int:
    return sum(router(text).suits == suits for text, suits in questions(name))


SIZES = {"router_questions.json": 30, "router_questions_development.json": 60, "router_questions_unseen.json": 30}


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_the_sets_are_balanced(name: str, size: int) -> None:
    listed = questions(name)
    assert len({text for text, _ in listed}) == size and sum(suits for _, suits in listed) == size // 2
    assert sum(any(character >= "\u4e00" for character in text) for text, _ in listed) >= size // 3  # Chinese


def test_no_question_is_in_two_sets() -> None:
    assert len({text for name in SIZES for text, _ in questions(name)}) == sum(SIZES.values())


def test_the_router_is_right_on_questions_labelled_before_its_rules() -> None:
    assert num_right(route, "router_questions.json") >= 26
    assert num_right(lambda _: Route(True, ""), "router_questions.json") == 15  # a constant answer fails


def test_the_rules_cover_the_questions_they_were_widened_for() -> None:
    assert num_right(route, "router_questions_development.json") == 60


def test_the_router_on_unseen_questions() -> None:
    """The honest figure. Most mistakes are plain decoding where sections would do: slower, never a worse answer."""
    assert num_right(route, "router_questions_unseen.json") >= 21
    assert sum(route(text).suits for text, suits in questions("router_questions_unseen.json") if not suits) <= 2


def test_every_decision_has_a_reason_and_long_texts_are_cut() -> None:
    for text, _ in questions("router_questions.json"):
        assert route(text).reason and not route(text).forced
    assert route("Tips for sleep? " + "x" * 10_000_000).suits
    assert not route("x" * MAX_READ + " Tips for sleep?").suits


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\x00",
        "?" * 5000,
        "(" * 3000,
        "第" * 4000,
        "a b " * 2000,
        "write " * 1000,
        f"a{chr(10) * 3998}b",
        f"a{' ' * 3998}b",
        "请" * 4000,
    ],
)
def test_any_text_gets_an_answer(text: str) -> None:
    assert not route(text).suits
