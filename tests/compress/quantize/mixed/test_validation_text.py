"""Clusters of validation windows: texts of every length, in turns, and never in both halves."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.compress.quantize.mixed.validation_text import choose_windows, split_texts
from hasten.core.errors import InvalidOption
from hasten.quality.window import TokenText, Window

STRIDE = 10_000  # between the token ids of two texts


def texts_of(lengths: list[int]) -> list[TokenText]:
    """Return texts whose token ids tell the text and the place."""
    return [TokenText(tuple(range(STRIDE * number, STRIDE * number + length))) for number, length in enumerate(lengths)]


def predicted(clusters: list[list[Window]]) -> list[int]:
    return [token for cluster in clusters for window in cluster for token in window.token_ids[1:]]


def sources(clusters: list[list[Window]]) -> list[int]:
    """Return the number of the text of each cluster, which all its windows are from."""
    found = [{token // STRIDE for window in cluster for token in window.token_ids} for cluster in clusters]
    assert all(len(numbers) == 1 for numbers in found)
    return [min(numbers) for numbers in found]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(2, 90), min_size=1, max_size=30), st.integers(1, 40), st.integers(1, 600))
def test_texts_take_turns(lengths: list[int], length: int, num_tokens: int) -> None:
    clusters = choose_windows(texts_of(lengths), length, num_tokens)
    tokens, numbers = predicted(clusters), sources(clusters)
    assert len(tokens) == len(set(tokens)) == min(num_tokens, sum(lengths) - len(lengths))
    assert all(1 <= window.num_tokens <= length for cluster in clusters for window in cluster)
    assert all(window.token_ids == tuple(range(window.token_ids[0], window.token_ids[-1] + 1)) for c in clusters for window in c)
    assert numbers == sorted(set(numbers))
    counts = {number: len(cluster) for number, cluster in zip(numbers, clusters, strict=True)}
    for number, text_length in enumerate(lengths):
        if counts.get(number, 0) < -(-(text_length - 1) // length):  # it has a window left
            assert counts.get(number, 0) >= max(counts.values()) - 1


def test_windows_are_from_all_places_of_the_texts() -> None:
    clusters = choose_windows(texts_of([1601] * 40), 16, 40 * 16)
    places = sorted(cluster[0].token_ids[0] % STRIDE // 16 for cluster in clusters)
    assert [len(cluster) for cluster in clusters] == [1] * 40
    assert all(9 <= sum(place // 25 == quarter for place in places) <= 12 for quarter in range(4))


@pytest.mark.parametrize("lengths", [[100] * 8, [100, 1, 3, 1, 60, 100, 0, 7, 100, 2, 40, 300]])
def test_a_cluster_is_a_text_and_halves_share_none(lengths: list[int]) -> None:
    first, second = split_texts(texts_of(lengths), 16, 201)
    numbers = [number for number, length in enumerate(lengths) if length > 1]
    assert (sources(first), sources(second)) == (numbers[0::2], numbers[1::2])
    assert (len(predicted(first)), len(predicted(second))) == (100, 101)


def test_the_texts_that_ship_get_one_or_two_windows_each() -> None:
    from tests.mixed_models import split_heldout

    from hasten.compress.quantize.mixed.quantize import VALIDATION_TOKENS, VALIDATION_WINDOW

    known, others = split_heldout(0)
    halves = split_texts(known + others, VALIDATION_WINDOW, VALIDATION_TOKENS)
    assert [len(half) for half in halves] == [23, 22]
    assert {len(cluster) for half in halves for cluster in half} == {1, 2}
    assert sum(len(predicted(half)) for half in halves) == VALIDATION_TOKENS


def test_of_few_texts_each_window_is_a_cluster() -> None:
    first, second = split_texts(texts_of([100] * 7), 16, 400)
    assert {len(cluster) for cluster in (*first, *second)} == {1}
    assert {*sources(first)} == {0, 2, 4, 6}
    assert {*sources(second)} == {1, 3, 5}
    assert [len(predicted(half)) for half in (first, second)] == [200, 200]


def test_halves_of_one_text_are_its_first_and_its_second_half() -> None:
    first, second = split_texts(texts_of([129]), 16, 4096)
    assert [window.token_ids[0] for (window,) in (*first, *second)] == list(range(0, 128, 16))
    assert len(first) == len(second) == 4


@pytest.mark.parametrize("lengths", [[], [1], [1] * 20])
def test_texts_without_a_token_to_predict_are_refused(lengths: list[int]) -> None:
    with pytest.raises(InvalidOption, match="too short to predict"):
        split_texts(texts_of(lengths), 16, 400)
