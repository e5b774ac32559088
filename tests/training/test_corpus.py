"""No validation text is trained on, and the batch of a step can be repeated."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from hasten.core.errors import InvalidOption
from hasten.training.corpus import Corpus, draft_token_ids


def make_documents(count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Return documents whose tokens are all different, so that a token identifies its document."""
    rng = random.Random(seed)
    sizes = [rng.randint(length // 2, length) for _ in range(count)]
    starts = [sum(sizes[:index]) + 1 for index in range(count)]
    return [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]


def test_the_validation_stream_has_complete_documents_chosen_by_content():
    documents = make_documents(200, 40)
    corpus = Corpus.split(documents, 32, 0.1, None)
    validation, train = set(corpus.validation_N.tolist()), set(corpus.train_N.tolist())
    assert not validation & train
    assert validation | train == {token for document in documents for token in document}
    assert 0.1 <= len(validation) / (len(validation) + len(train)) < 0.11
    assert all(set(document) <= validation or set(document) <= train for document in documents)
    # The choice does not depend on the order of documents.
    reordered = Corpus.split(documents[::-1], 32, 0.1, None)
    assert set(reordered.validation_N.tolist()) == validation


def test_the_training_stream_keeps_the_order_of_the_text():
    corpus = Corpus.split(make_documents(200, 40), 32, 0.1, None)
    assert corpus.train_N.tolist() == sorted(corpus.train_N.tolist())


def test_copies_of_a_document_are_in_one_stream():
    documents = make_documents(50, 64)
    corpus = Corpus.split([*documents, *documents, *documents], 32, 0.2, None)
    assert not set(corpus.validation_N.tolist()) & set(corpus.train_N.tolist())


def test_a_single_long_document_is_split_by_sections():
    (document,) = make_documents(1, 10_000)
    corpus = Corpus.split([document], 32, 0.05, None)
    assert sorted([*corpus.validation_N.tolist(), *corpus.train_N.tolist()]) == document
    assert 0.05 <= len(corpus.validation_N) / len(document) < 0.06


def test_validation_sections_are_spread_over_a_long_document():
    """Each tenth of the document gives as many sections as a random choice would."""
    (document,) = make_documents(1, 40_000)
    for seq_len in (32, 64):
        corpus = Corpus.split([document], seq_len, 0.2, None)
        tenths = Counter(10 * (token - 1) // len(document) for token in corpus.validation_N.tolist())
        per_tenth = len(document) / 10 / seq_len
        spread = 4 * (0.2 * 0.8 / per_tenth) ** 0.5
        assert all(abs(tenths[tenth] / seq_len / per_tenth - 0.2) < spread for tenth in range(10))


def test_a_long_document_does_not_fill_the_validation_stream():
    """Short documents stay complete beside it."""
    short = make_documents(400, 60)
    long = list(range(100_000, 110_000))
    corpus = Corpus.split([*short, long], 32, 0.1, None)
    validation = set(corpus.validation_N.tolist())
    assert all(not set(document) & validation or set(document) <= validation for document in short)
    assert 0.05 < len(validation & set(long)) / len(long) < 0.15


def test_documents_are_separated():
    corpus = Corpus.split(make_documents(100, 40), 32, 0.1, 0)
    assert int((corpus.train_N == 0).sum()) + int((corpus.validation_N == 0).sum()) == 100


def test_an_epoch_reads_every_sequence_once_and_the_next_epoch_reads_others():
    corpus = Corpus.split(make_documents(1, 20_000), 32, 0.05, None)
    per_epoch = (len(corpus.train_N) - 32) // 32
    rows = torch.cat([corpus.batch(step, 4, 32, seed=3).ids_BS for step in range(2 * per_epoch // 4)])
    counts = Counter(rows[:per_epoch].flatten().tolist())
    assert max(counts.values()) == 1 and len(counts) == per_epoch * 32
    assert all(torch.equal(row[1:] - row[:-1] >= 1, torch.ones(31, dtype=torch.bool)) for row in rows)
    first, second = (set(rows[a:b, 0].tolist()) for a, b in ((0, per_epoch), (per_epoch, 2 * per_epoch)))
    assert len(first & second) < per_epoch / 2


def test_a_batch_depends_on_seed_and_step_only():
    corpus = Corpus.split(make_documents(1, 20_000), 32, 0.05, None)
    for step in (0, 7, 1000):
        batch, again = corpus.batch(step, 4, 32, seed=3), corpus.batch(step, 4, 32, seed=3)
        assert torch.equal(batch.ids_BS, again.ids_BS) and batch.seed == again.seed
        for other in (corpus.batch(step + 1, 4, 32, seed=3), corpus.batch(step, 4, 32, seed=4)):
            assert not torch.equal(batch.ids_BS, other.ids_BS) and batch.seed != other.seed


@pytest.mark.parametrize("limit", [1, 5, 1000])
def test_validation_sequences_are_distinct_and_always_the_same(limit):
    corpus = Corpus.split(make_documents(1, 20_000), 32, 0.2, None)
    sequences = torch.cat([batch.ids_BS for batch in corpus.validation_batches(4, 32, limit)])
    assert len(sequences) == min(limit, (len(corpus.validation_N) // 32 + 1) // 2)  # the other half is for calibration
    assert len(set(sequences.flatten().tolist())) == sequences.numel()
    assert torch.equal(sequences, torch.cat([batch.ids_BS for batch in corpus.validation_batches(3, 32, limit)]))


def test_calibration_sequences_are_never_in_a_validation_batch():
    """Sequences that choose the weights do not calibrate thresholds, for any number of them."""
    for length in (96, 130, 2000, 40_000):
        corpus = Corpus.split([list(range(length))], 32, 0.2, None)
        num_sequences = len(corpus.validation_N) // 32
        validation = {int(token) for batch in corpus.validation_batches(8, 32, 10_000) for token in batch.ids_BS.flatten()}
        calibration = corpus.calibration_sequences(32, 10_000, 0)
        assert not validation & set(calibration.flatten().tolist())
        assert len(calibration) == num_sequences // 2 >= 1 and len(validation) == 32 * (num_sequences - len(calibration))
    assert torch.equal(calibration, corpus.calibration_sequences(32, 10_000, 0))
    assert not torch.equal(calibration, corpus.calibration_sequences(32, 10_000, 1))
    assert len(corpus.calibration_sequences(32, 64, 0)) == 64
    starts = [int(sequence[0]) for sequence in calibration]
    assert starts != sorted(starts)


@pytest.mark.parametrize("documents", [[], [list(range(95))], [[1, 2, 3]] * 40])
def test_too_little_text_is_refused_with_both_numbers(documents):
    with pytest.raises(InvalidOption) as error:
        Corpus.split(documents, 32, 0.05, None)
    message = str(error.value)
    assert f"got {sum(map(len, documents))} tokens" in message and "at least 96 tokens" in message and "--seq-len" in message


def test_the_draft_vocabulary_is_the_most_frequent_tokens():
    ids = torch.tensor([9, 9, 9, 4, 4, 7, 2, 2], dtype=torch.int32)
    corpus = Corpus(ids, ids)
    assert draft_token_ids(corpus, 3, 12).tolist() == [2, 4, 9]
    assert draft_token_ids(corpus, 6, 12).tolist() == [0, 1, 2, 4, 7, 9]
    assert draft_token_ids(corpus, 12, 12) is None and draft_token_ids(corpus, None, 12) is None
    assert len(draft_token_ids(corpus, None, 40_000)) == 32_000
