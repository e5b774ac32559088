"""``windows``: every token but the first of a text is predicted once, for windows of any length."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.core.errors import InvalidOption
from hasten.quality.window import TokenText, windows


def distinct_texts(sizes: list[int]) -> list[TokenText]:
    """Return texts whose tokens are all different; token i of a text has i + 1 bytes."""
    texts = []
    for number, size in enumerate(sizes):
        ends = [(i + 1) * (i + 2) // 2 for i in range(size)]
        texts.append(TokenText(tuple(1000 * number + i for i in range(size)), tuple(ends)))
    return texts


@given(st.lists(st.integers(0, 30), max_size=6).filter(lambda sizes: max(sizes, default=0) > 1), st.integers(1, 12))
def test_every_token_but_the_first_is_predicted_once(sizes: list[int], length: int) -> None:
    texts = distinct_texts(sizes)
    text_windows = windows(texts, length)
    assert [t for window in text_windows for t in window.token_ids[1:]] == [t for text in texts for t in text.token_ids[1:]]
    assert max(window.num_tokens for window in text_windows) <= length
    for window in text_windows:
        assert list(window.token_ids) == list(range(window.token_ids[0], window.token_ids[-1] + 1))
        assert window.num_bytes == sum(token % 1000 + 1 for token in window.token_ids[1:])


@given(st.lists(st.integers(2, 60), min_size=1, max_size=9), st.integers(1, 12), st.integers(1, 200))
def test_num_tokens_is_exact(sizes: list[int], length: int, num_tokens: int) -> None:
    text_windows = windows(distinct_texts(sizes), length, num_tokens)
    predicted = [token for window in text_windows for token in window.token_ids[1:]]
    assert len(predicted) == min(num_tokens, sum(sizes) - len(sizes))
    assert predicted == sorted(set(predicted))


def test_a_subset_is_spread_over_all_texts() -> None:
    text_windows = windows(distinct_texts([101] * 10), 10, 200)
    assert {window.token_ids[0] // 1000 for window in text_windows} == set(range(10))


def test_token_ids_without_text_have_no_bytes() -> None:
    assert [window.num_bytes for window in windows([TokenText((1, 2, 3))], 1)] == [None, None]


@pytest.mark.parametrize(("sizes", "length", "num_tokens"), [([], 4, None), ([1, 1], 4, None), ([9], 0, None), ([9], 4, 0)])
def test_texts_without_a_token_to_predict_are_refused(sizes: list[int], length: int, num_tokens: int | None) -> None:
    with pytest.raises(InvalidOption):
        windows(distinct_texts(sizes), length, num_tokens)
