"""The router of sections: its decision is a sum of weights, and it is right on labelled questions that no weight was trained on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hasten.entrypoints.sections import router as module
from hasten.entrypoints.sections.router import MAX_READ, Route, route

FOLDER = Path(__file__).parent
WEIGHTS_FILE = Path(module.__file__).with_name("router_weights.json")
WEIGHTS = json.loads(WEIGHTS_FILE.read_text(encoding="utf-8"))


def questions(name: str) -> list[tuple[str, bool]]:
    found = json.loads((FOLDER / name).read_text(encoding="utf-8"))["questions"]
    return [(each["text"], each["suits"]) for each in found]


def num_right(router: Callable[[str], Route], name: str) -> int:
    return sum(router(text).suits == suits for text, suits in questions(name))


SEALED = "router_questions_sealed.json"
SIZES = {
    "router_questions.json": 30,
    "router_questions_development.json": 60,
    "router_questions_unseen.json": 30,
    "router_questions_independent.json": 120,  # trained on
    SEALED: 60,
}


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_the_sets_are_balanced(name: str, size: int) -> None:
    listed = questions(name)
    assert len({text for text, _ in listed}) == size and sum(suits for _, suits in listed) == size // 2
    assert sum(any(character >= "\u4e00" for character in text) for text, _ in listed) >= size // 3  # Chinese


def test_no_question_is_in_two_sets() -> None:
    training = FOLDER.parents[2] / "benchmarks/router/questions.json"
    sets = [*(questions(name) for name in SIZES), questions(str(training))]
    assert len({text for listed in sets for text, _ in listed}) == sum(map(len, sets))


@pytest.mark.parametrize(
    ("name", "at_least"),
    [
        ("router_questions.json", 29),
        ("router_questions_development.json", 57),
        ("router_questions_unseen.json", 28),
        ("router_questions_independent.json", 117),
    ],
)
def test_the_router_on_labelled_questions(name: str, at_least: int) -> None:
    assert num_right(route, name) >= at_least
    assert num_right(lambda _: Route(True, ""), name) == SIZES[name] // 2  # a constant answer fails


def test_the_router_on_the_sealed_questions() -> None:
    """The honest figure: the set was read once, after the last change. 52 of 60 is the rate of 26 of 30."""
    assert num_right(route, SEALED) >= 56 > 52
    missed = [suits for text, suits in questions(SEALED) if route(text).suits != suits]
    assert missed.count(False) <= 2 and missed.count(True) <= 2  # sections for an answer that needs none, plain decoding of points


def test_a_decision_is_the_sign_of_a_sum_of_weights() -> None:
    tips = "Tips?"
    names = ["#?", "tips", "|", "$", "^^tips", "_^^<points>", "_<points>", "_^ <points>", "_<points> $", "_$"]
    assert route(tips).suits == (WEIGHTS["bias"] + sum(WEIGHTS["weights"].get(name, 0) for name in names) > 0)
    assert module.question_features(tips).keys() == set(names) - {"|"}
    assert all(type(weight) is int and weight for weight in WEIGHTS["weights"].values()) and type(WEIGHTS["bias"]) is int
    assert WEIGHTS_FILE.stat().st_size < 50_000


def test_a_reason_quotes_the_words_that_count_most(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {"tips": 40, "poem": -30, "^^tips": 30, "sleep": 70, "_$": 500, "of": 10, "good": 5, "(": 80}
    monkeypatch.setattr(module, "router_weights", lambda: module.RouterWeights(-600, weights))
    assert route("tips of good ( sleep") == Route(True, "its wording is that of a list of points: “sleep”, “tips”, “of”")
    assert route("Poem tips") == Route(False, "its wording is that of one connected or short answer: “poem”")
    assert route("") == Route(False, "its wording is that of one connected or short answer")


def test_every_decision_has_a_reason_and_long_texts_are_cut() -> None:
    for text, _ in questions("router_questions.json"):
        assert "“" in route(text).reason and not route(text).forced
    beginning, end = "Tips for sleep? ".ljust(MAX_READ // 2), " What helps against noise?".rjust(MAX_READ // 2)
    assert route(beginning + "poem" * 10_000_000 + end) == route(f"{beginning}\n{end}")


def test_a_decision_takes_less_than_a_millisecond() -> None:
    listed = [text for name in SIZES for text, _ in questions(name)]
    times = []
    for _ in range(5):
        start = time.process_time()
        for text in listed:
            route(text)
        times.append(time.process_time() - start)
    assert min(times) / len(listed) < 1e-3


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\x00",
        "\ud800",
        "?" * 5000,
        "(" * 3000,
        "‘" * 4000,
        "'" * 4000,
        "a'" * 4000,
        "a b " * 2000,
        "write " * 1000,
        f"a{chr(10) * 3998}b",
        f"a{' ' * 3998}b",
        "请" * 4000,
        "ﷺ" * 4000,
    ],
)
def test_any_text_gets_an_answer(text: str) -> None:
    start = time.process_time()
    assert not route(text).suits
    assert time.process_time() - start < 0.5
