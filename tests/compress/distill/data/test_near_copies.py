"""ROUGE-L against its definition by dynamic programming, and near-copies against comparing all."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.compress.distill.data.near_copies import MAX_WORDS, NearCopies, common_length, rouge_l, words_of

Words = st.lists(st.sampled_from("abcd"), max_size=90)


def longest_common(first: list[str], second: list[str]) -> int:
    """The recurrence of the textbooks."""
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, one in enumerate(first):
        for j, other in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if one == other else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(Words, Words)
@settings(max_examples=200, deadline=None)
def test_the_common_length_is_that_of_the_recurrence(first: list[str], second: list[str]) -> None:
    length = longest_common(first, second)
    assert common_length(first, second) == length
    if first and second:
        precision, recall = length / len(second), length / len(first)
        expected = 2 * precision * recall / (precision + recall) if length else 0.0
        assert abs(rouge_l(first, second) - expected) < 1e-12


def test_near_copies_are_those_that_comparing_all_finds() -> None:
    generator = random.Random(3)
    for threshold in (0.3, 0.5, 0.7, 1.0):
        copies, kept, num_dropped = NearCopies(threshold), [], 0
        for _ in range(250):
            words = generator.choices("abcdefgh", k=generator.randint(1, 9))
            is_copy = any(2 * longest_common(words, other) / (len(words) + len(other)) >= threshold for other in kept)
            assert copies.add(" ".join(words)) is not is_copy
            num_dropped += is_copy
            if not is_copy:
                kept.append(words)
        assert num_dropped > 20 and len(kept) > 3


def test_words_have_no_case_and_chinese_is_compared_by_character() -> None:
    assert words_of("The cat, the CAT!") == ["the", "cat", "the", "cat"]
    assert words_of("用Python写排序") == ["用", "python", "写", "排", "序"]
    assert words_of("+ - *") == ["+", "-", "*"]
    assert len(words_of("a " * 3000)) == MAX_WORDS
    copies = NearCopies(0.7)
    assert copies.add("+ - *") and not copies.add("+-*") and copies.add("!!!")


def test_seeds_are_added_whatever_they_are() -> None:
    copies = NearCopies(0.7)
    assert copies.add("one two", always=True) and copies.add("one two", always=True) and not copies.add("One, two.")
