"""Training of the router: it finds planted weights, finds nothing in shuffled labels, and gives the weights that ship."""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from hasten.entrypoints.sections.router import router_weights

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def training() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield importlib.import_module("train_router")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def planted(training: ModuleType, seed: int, num: int = 300) -> list[object]:
    """Return questions that suit if they have more of the features a, b and c than of x, y and z."""
    numbers, found = random.Random(seed), []
    while len(found) < num:
        features = frozenset(name for name in "abcxyzmnop" if numbers.random() < 0.4)
        score = len(features & set("abc")) - len(features & set("xyz"))
        if score:
            found.append(training.Labelled("".join(sorted(features)), score > 0, features))
    return found


def test_training_finds_planted_weights(training: ModuleType) -> None:
    router = training.train(planted(training, 0), max_features=6)
    assert router.weights.keys() == set("abcxyz")  # the features that say nothing are dropped
    assert all((weight > 0) == (name in "abc") for name, weight in router.weights.items())
    unseen = planted(training, 1)
    assert sum(training.is_right(router, each) for each in unseen) >= 0.98 * len(unseen)


def test_cross_validation_sees_no_gain_in_shuffled_labels(training: ModuleType) -> None:
    listed = planted(training, 2)
    assert sum(training.cross_validate(listed)) >= 0.97 * len(listed)
    labels = [each.suits for each in listed]
    random.Random(3).shuffle(labels)
    shuffled = [each._replace(suits=suits) for each, suits in zip(listed, labels, strict=True)]
    assert sum(training.cross_validate(shuffled)) <= 0.6 * len(listed)


def test_the_weights_that_ship_are_those_of_the_script(training: ModuleType) -> None:
    router = training.train([*training.read(training.OWN), *training.read(training.INDEPENDENT)])
    shipped = router_weights()
    assert abs(router.bias - shipped.bias) <= 1 and len(router.weights.keys() ^ shipped.weights.keys()) <= 10  # other roundings
    common = router.weights.keys() & shipped.weights.keys()
    assert all(abs(router.weights[name] - shipped.weights[name]) <= 1 for name in common)


def test_figures_are_counted_by_language(training: ModuleType) -> None:
    listed = [training.Labelled(text, True, frozenset()) for text in ("tips", "more tips", "技巧")]
    assert training.tally(listed, [True, False, True]) == {"en": "1/2", "zh": "1/1"}


def test_the_training_questions_are_half_and_half(training: ModuleType) -> None:
    found = json.loads(training.OWN.read_text(encoding="utf-8"))["questions"]
    assert len({each["text"] for each in found}) == len(found) >= 600
    assert 0.4 < sum(each["suits"] for each in found) / len(found) < 0.6
    assert 0.4 < sum(training.is_chinese(each["text"]) for each in found) / len(found) < 0.6
