"""Signatures, buckets and near-duplicates against sets of words and the similarity of all pairs."""

from __future__ import annotations

import itertools
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.compress.distill.selection.minhash import NUM_HASHES, rows_per_band, shared_buckets, signatures
from hasten.compress.distill.selection.near_duplicates import NEAR_DUPLICATES, drop_near_duplicates
from hasten.compress.distill.selection.pool import Record
from hasten.compress.distill.selection.shingles import jaccard, shingle_hashes, split_words
from hasten.compress.quantize.quantization_run import Stopped


def shingle_set(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    return {tuple(words[start : start + 5]) for start in range(max(1, len(words) - 4))}


def similarity(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    return len(a & b) / len(a | b)


def record(number: int, output: str, given: str = "copy") -> Record:
    return Record(number, output, given, output)


def planted_pool(seed: int, originals: int, length: int) -> list[Record]:
    """Return random texts and copies of each with 0 to 12 % of the words replaced, deleted or doubled, shuffled."""
    generator = random.Random(seed)
    vocabulary = [f"word{number}" for number in range(400)]
    texts = []
    for _ in range(originals):
        words = generator.choices(vocabulary, k=length)
        texts.append(" ".join(words))
        for rate in (0.0, 0.005, 0.01, 0.02, 0.04, 0.12):
            edited = []
            for word in words:
                edit = generator.random() < rate and generator.choice("rdi")
                edited += {"r": [generator.choice(vocabulary)], "d": [], "i": [word, word], False: [word]}[edit]
            texts.append(" ".join(edited))
    generator.shuffle(texts)
    return [record(number, text) for number, text in enumerate(texts, 1)]


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab A.,_\n", max_size=60), st.text(alphabet="ab A.,_\n", max_size=60))
def test_the_similarity_of_hashes_is_that_of_sets_of_words(first, second):
    hashed = [shingle_hashes(split_words(text)) for text in (first, second)]
    assert jaccard(*hashed) == similarity(shingle_set(first), shingle_set(second))
    assert [len(hashes) for hashes in hashed] == [len(shingle_set(text)) for text in (first, second)]


def test_the_share_of_equal_entries_estimates_the_similarity():
    errors = []
    for seed in range(40):
        common, own = np.split(np.random.default_rng(seed).integers(0, 2**64, 400, np.uint64), [20 + 7 * seed])
        first, second = np.concatenate((common, own[::2])), np.concatenate((common, own[1::2]))
        signed = signatures([first, second], 2)
        errors.append((signed[0] == signed[1]).mean() - len(common) / 400)
    assert abs(np.mean(errors)) < 3 * 0.5 / np.sqrt(NUM_HASHES * len(errors))  # no bias beyond the sampling error
    assert np.max(np.abs(errors)) < 5 * 0.5 / np.sqrt(NUM_HASHES)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_miss_almost_no_pair_of_the_threshold(threshold):
    rows = rows_per_band(threshold)
    assert (1 - threshold**rows) ** (NUM_HASHES // rows) <= 1e-6
    assert rows == NUM_HASHES or (1 - threshold ** (rows + 1)) ** (NUM_HASHES // (rows + 1)) > 1e-6


def test_buckets_join_records_that_share_a_band():
    generator = np.random.default_rng(0)
    signed = generator.integers(0, 2**32, (50, NUM_HASHES), np.uint32)
    signed[7, 4:8] = signed[31, 4:8]
    signed[40] = signed[2]
    buckets = shared_buckets(signed, 0.8)
    assert rows_per_band(0.8) == 4
    assert {(a, b) for a, b in itertools.combinations(buckets, 2) if set(buckets[a]) & set(buckets[b])} == {(7, 31), (2, 40)}
    assert len(buckets[2]) == NUM_HASHES // 4


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("length", [3, 60, 400])
def test_planted_near_duplicates_are_never_both_kept(threshold, length):
    records = planted_pool(length, 20, length)
    kept, dropped = drop_near_duplicates(records, threshold)
    sets = {each.number: shingle_set(f"copy {each.output}") for each in records}
    pairs = {pair: similarity(sets[pair[0]], sets[pair[1]]) for pair in itertools.combinations(sets, 2)}
    assert sum(s >= threshold for s in pairs.values()) >= 20  # there are such pairs
    numbers = [each.number for each in kept]
    assert all(pairs[pair] < threshold for pair in itertools.combinations(numbers, 2))
    # What was dropped resembles an earlier record that was kept.
    for number in sets.keys() - set(numbers):
        assert any(pairs[other, number] >= threshold for other in numbers if other < number)
    assert dropped == {NEAR_DUPLICATES: len(records) - len(kept)}
    assert numbers == sorted(numbers)


def test_inputs_count():
    """Equal outputs of different inputs are no duplicates, such as the labels of a classification."""
    texts = [" ".join(f"w{number}{position}" for position in range(20)) for number in range(3)]
    kept, _ = drop_near_duplicates([record(n, "yes", text) for n, text in enumerate(texts)], 0.8)
    assert len(kept) == 3
    kept, _ = drop_near_duplicates([record(n, "yes", texts[0]) for n in range(3)], 0.8)
    assert [each.number for each in kept] == [0]


def test_a_tick_may_stop_it():
    ticks: list[int] = []

    def tick() -> None:
        ticks.append(1)
        if len(ticks) == 3:
            raise Stopped

    with pytest.raises(Stopped):
        drop_near_duplicates(planted_pool(0, 2, 10), 0.8, tick)
