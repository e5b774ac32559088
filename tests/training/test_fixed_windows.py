"""Windows of a text that stay the same in every epoch."""

from __future__ import annotations

import pytest
import torch

from hasten.core.errors import InvalidOption
from hasten.training.corpus import Corpus
from hasten.training.examples import Example, Examples
from hasten.training.fixed_windows import FixedWindows
from hasten.training.predicted_rows import predicted_rows

SEQ_LEN = 8


@pytest.fixture(scope="module")
def documents() -> list[list[int]]:
    return [[1000 * number + position for position in range(50)] for number in range(1, 9)]


@pytest.fixture(scope="module")
def windows(documents) -> FixedWindows:
    return FixedWindows.split(documents, SEQ_LEN, 0.2, separator=7)


def test_the_streams_are_those_of_a_corpus(documents, windows):
    corpus = Corpus.split(documents, SEQ_LEN, 0.2, separator=7)
    for name, stream in corpus.tensors().items():
        assert torch.equal(windows.tensors()[name], stream)


def test_windows_are_the_streams_cut_without_gaps(windows):
    corpus, count = windows.corpus, len(windows.predicted_counts_N)
    ids_NS = torch.cat([windows.numbered([index]).ids_BS for index in range(count)])
    streams = (stream[: len(stream) // SEQ_LEN * SEQ_LEN] for stream in (corpus.train_N, corpus.validation_N))
    assert torch.equal(ids_NS.flatten(), torch.cat(list(streams)).long())


def test_every_epoch_reads_every_training_window_once_in_another_order(windows):
    count = len(windows.corpus.train_N) // SEQ_LEN
    epochs = [windows.batch(step, count, SEQ_LEN, seed=3).indices for step in range(2)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_the_batch_has_the_windows_of_its_indices(windows):
    batch = windows.batch(1, 5, SEQ_LEN, seed=0)
    assert torch.equal(batch.ids_BS, windows.numbered(batch.indices).ids_BS)


def test_validation_reads_the_same_windows_as_the_corpus(windows):
    corpus = list(windows.corpus.validation_batches(3, SEQ_LEN, 5))
    fixed = list(windows.validation_batches(3, SEQ_LEN, 5))
    assert len(corpus) == len(fixed) == 2
    for expected, batch in zip(corpus, fixed, strict=True):
        assert torch.equal(batch.ids_BS, expected.ids_BS)
        assert torch.equal(windows.numbered(batch.indices).ids_BS, expected.ids_BS)


def test_another_length_is_refused(windows):
    with pytest.raises(InvalidOption, match="seq_len=16; allowed: 8"):
        windows.batch(0, 1, 16, seed=0)
    with pytest.raises(InvalidOption, match="another length"):
        list(windows.validation_batches(1, 16, 1))


def test_predicted_positions_are_counted_as_they_are_predicted(windows):
    examples = Examples.join([Example([1, 2, 3, 4], 2), Example([5, 6, 7], 0)], [Example([8, 9], 1)])
    for source in (windows, examples):
        counted = [len(predicted_rows(source.numbered([index])).rows_R) for index in range(len(source.predicted_counts_N))]
        assert source.predicted_counts_N.tolist() == counted


def test_batches_of_examples_have_their_indices():
    examples = Examples.join([Example([1, 2, 3, number], 2) for number in range(10, 16)], [Example([8, 9], 1)])
    batch = examples.batch(0, 4, 32, seed=1)
    assert [int(row[3]) for row in batch.ids_BS] == [10 + index for index in batch.indices]
    (validation,) = examples.validation_batches(4, 32, 4)
    assert validation.indices == (6,)
