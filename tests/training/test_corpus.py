"""The text is split so that nothing held out is trained on, and cut so that a step can be repeated."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from hasten.core.errors import InvalidOption
from hasten.training.corpus import Corpus


def documents(count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Every token is a number of its own, so that a token tells where it came from."""
    numbers = random.Random(seed)
    sizes = [numbers.randint(length // 2, length) for _ in range(count)]
    starts = [sum(sizes[:place]) + 1 for place in range(count)]
    return [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]


def test_documents_are_held_out_whole_and_by_their_content():
    texts = documents(200, 40)
    corpus = Corpus.split(texts, 32, 0.1, None)
    held_out, trained = set(corpus.held_out_N.tolist()), set(corpus.train_N.tolist())
    assert not held_out & trained
    assert held_out | trained == {token for text in texts for token in text}
    assert 0.1 <= len(held_out) / (len(held_out) + len(trained)) < 0.11
    assert all(set(text) <= held_out or set(text) <= trained for text in texts)
    # Not by their place: another order, and other documents beside them, change next to nothing.
    again = Corpus.split(texts[::-1], 32, 0.1, None)
    assert set(again.held_out_N.tolist()) == held_out


def test_the_order_of_what_is_trained_on_is_that_of_the_text():
    corpus = Corpus.split(documents(200, 40), 32, 0.1, None)
    assert corpus.train_N.tolist() == sorted(corpus.train_N.tolist())


def test_copies_of_a_document_are_on_one_side():
    texts = documents(50, 64)
    corpus = Corpus.split([*texts, *texts, *texts], 32, 0.2, None)
    assert not set(corpus.held_out_N.tolist()) & set(corpus.train_N.tolist())


def test_a_single_long_text_is_held_out_in_sections():
    (text,) = documents(1, 10_000)
    corpus = Corpus.split([text], 32, 0.05, None)
    assert sorted([*corpus.held_out_N.tolist(), *corpus.train_N.tolist()]) == text
    assert 0.05 <= len(corpus.held_out_N) / len(text) < 0.06


def test_what_is_held_out_of_a_long_text_comes_from_all_over_it():
    """As many of its windows from each tenth as chance would have: a passage says little of a text that changes."""
    (text,) = documents(1, 40_000)
    for window in (32, 64):
        corpus = Corpus.split([text], window, 0.2, None)
        tenths = Counter(10 * (token - 1) // len(text) for token in corpus.held_out_N.tolist())
        windows = len(text) / 10 / window
        spread = 4 * (0.2 * 0.8 / windows) ** 0.5
        assert all(abs(tenths[tenth] / window / windows - 0.2) < spread for tenth in range(10))


def test_a_long_document_among_many_does_not_fill_what_is_held_out():
    """Others stay whole, and no other is held out because of it."""
    short = documents(400, 60)
    long = list(range(100_000, 110_000))
    corpus = Corpus.split([*short, long], 32, 0.1, None)
    held_out = set(corpus.held_out_N.tolist())
    assert all(not set(text) & held_out or set(text) <= held_out for text in short)
    assert 0.05 < len(held_out & set(long)) / len(long) < 0.15


def test_documents_are_separated():
    corpus = Corpus.split(documents(100, 40), 32, 0.1, 0)
    assert int((corpus.train_N == 0).sum()) + int((corpus.held_out_N == 0).sum()) == 100


def test_an_epoch_reads_every_window_once_and_the_next_one_reads_others():
    corpus = Corpus.split(documents(1, 20_000), 32, 0.05, None)
    per_epoch = (len(corpus.train_N) - 32) // 32
    steps = [corpus.batch(step, 4, 32, seed=3).ids_BW for step in range(2 * per_epoch // 4)]
    rows = torch.cat(steps)
    first = Counter(rows[:per_epoch].flatten().tolist())
    assert max(first.values()) == 1 and len(first) == per_epoch * 32
    assert all(torch.equal(row[1:] - row[:-1] >= 1, torch.ones(31, dtype=torch.bool)) for row in rows)
    firsts, seconds = (set(rows[a:b, 0].tolist()) for a, b in ((0, per_epoch), (per_epoch, 2 * per_epoch)))
    assert len(firsts & seconds) < per_epoch / 2


def test_a_batch_is_a_function_of_seed_and_step():
    corpus = Corpus.split(documents(1, 20_000), 32, 0.05, None)
    for step in (0, 7, 1000):
        batch, again = corpus.batch(step, 4, 32, seed=3), corpus.batch(step, 4, 32, seed=3)
        assert torch.equal(batch.ids_BW, again.ids_BW) and batch.seed == again.seed
        for other in (corpus.batch(step + 1, 4, 32, seed=3), corpus.batch(step, 4, 32, seed=4)):
            assert not torch.equal(batch.ids_BW, other.ids_BW) and batch.seed != other.seed


@pytest.mark.parametrize("limit", [1, 5, 1000])
def test_held_out_windows_are_spread_and_always_the_same(limit):
    corpus = Corpus.split(documents(1, 20_000), 32, 0.2, None)
    windows = torch.cat([batch.ids_BW for batch in corpus.held_out(4, 32, limit)])
    assert len(windows) == min(limit, (len(corpus.held_out_N) // 32 + 1) // 2)  # the other half is for calibration
    assert len(set(windows.flatten().tolist())) == windows.numel()
    assert torch.equal(windows, torch.cat([batch.ids_BW for batch in corpus.held_out(3, 32, limit)]))


@pytest.mark.parametrize("texts", [[], [list(range(95))], [[1, 2, 3]] * 40])
def test_too_little_text_is_refused_with_both_numbers(texts):
    with pytest.raises(InvalidOption) as error:
        Corpus.split(texts, 32, 0.05, None)
    message = str(error.value)
    assert f"got {sum(map(len, texts))} tokens" in message and "at least 96 tokens" in message and "--seq-len" in message
