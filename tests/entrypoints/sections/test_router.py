"""The router of sections on labelled questions: one set was written before the rules, one after them."""

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


@pytest.mark.parametrize("name", ["router_questions.json", "router_questions_after.json"])
def test_the_sets_are_balanced(name: str) -> None:
    listed = questions(name)
    assert len({text for text, _ in listed}) == 30 and sum(suits for _, suits in listed) == 15
    assert sum(any(character >= "\u4e00" for character in text) for text, _ in listed) >= 10  # Chinese


def test_the_router_is_right_on_questions_labelled_before_its_rules() -> None:
    assert num_right(route, "router_questions.json") >= 26
    assert num_right(lambda _: Route(True, ""), "router_questions.json") == 15  # a constant answer fails


def test_the_router_on_unseen_questions() -> None:
    """All its mistakes are plain decoding where sections would do: slower, never a worse answer."""
    assert num_right(route, "router_questions_after.json") >= 21
    assert [text for text, suits in questions("router_questions_after.json") if route(text).suits and not suits] == []


def test_every_decision_has_a_reason_and_long_texts_are_cut() -> None:
    for text, _ in questions("router_questions.json"):
        assert route(text).reason and not route(text).forced
    assert route("Tips for sleep? " + "x" * 10_000_000).suits
    assert not route("x" * MAX_READ + " Tips for sleep?").suits


@pytest.mark.parametrize(
    "text", ["", " ", "\x00", "?" * 5000, "(" * 3000, "第" * 4000, "a b " * 2000, "write " * 1000, "请" * 4000]
)
def test_any_text_gets_an_answer(text: str) -> None:
    assert not route(text).suits
