"""``FixedWindows``: a text cut into windows that are the same in every epoch.

Therefore results for each can be stored.

Shape suffixes: B windows of a batch · S tokens of a window · N windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core.errors import InvalidOption
from hasten.training.corpus import Batch, Corpus, derived_seed, shuffled_indices


@dataclass(frozen=True, slots=True)
class FixedWindows:
    """The windows of a corpus without its shifts.

    Those of the training stream come first, then those of the validation stream.
    """

    corpus: Corpus
    seq_len: int

    @classmethod
    def split(cls, documents: Sequence[Sequence[int]], seq_len: int, fraction: float, separator: int | None) -> FixedWindows:
        """Return the windows of ``Corpus.split``. Raises ``InvalidOption`` as it does."""
        return cls(Corpus.split(documents, seq_len, fraction, separator), seq_len)

    @property
    def summary(self) -> str:
        return f"{self._num_train:,} windows of {self.seq_len:,} tokens for training, {self._num_validation:,} for validation"

    @property
    def predicted_counts_N(self) -> Tensor:
        """The number of predicted positions of each window, int64 [N].

        The first token has no position before it.
        """
        return torch.full((self._num_train + self._num_validation,), self.seq_len - 1, dtype=torch.int64, device="cpu")

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields."""
        return {**self.corpus.tensors(), "seq_len": torch.tensor(self.seq_len, dtype=torch.int64, device="cpu")}

    def numbered(self, indices: Sequence[int]) -> Batch:
        """Return these windows as one batch, which has their indices."""
        return self._batch(indices, derived_seed(0, "numbered", indices[0]))

    def batch(self, step: int, size: int, seq_len: int, seed: int) -> Batch:
        """Return the windows of a step; each epoch shuffles them.

        Raises ``InvalidOption`` for another ``seq_len``.
        """
        self._check(seq_len)
        return self._batch(shuffled_indices(step, size, self._num_train, seed), derived_seed(seed, "step", step))

    def validation_batches(self, size: int, seq_len: int, limit: int) -> Iterator[Batch]:
        """Yield the batches of ``Corpus.validation_batches``.

        Raises ``InvalidOption`` for another ``seq_len``.
        """
        self._check(seq_len)
        indices = [self._num_train + index for index in self.corpus.validation_indices(seq_len, limit)]
        for first in range(0, len(indices), size):
            yield self._batch(indices[first : first + size], derived_seed(0, "held out", first))

    @property
    def _num_train(self) -> int:
        return len(self.corpus.train_N) // self.seq_len

    @property
    def _num_validation(self) -> int:
        return len(self.corpus.validation_N) // self.seq_len

    def _check(self, seq_len: int) -> None:
        if seq_len != self.seq_len:
            raise InvalidOption("the text was cut into windows of another length", got=f"seq_len={seq_len}", allowed=self.seq_len)

    def _batch(self, indices: Sequence[int], seed: int) -> Batch:
        return Batch(torch.stack([self._window(index) for index in indices]).long(), seed, indices=tuple(indices))

    def _window(self, index: int) -> Tensor:
        is_train = index < self._num_train
        stream = self.corpus.train_N if is_train else self.corpus.validation_N
        start = self.seq_len * (index if is_train else index - self._num_train)
        return stream[start : start + self.seq_len]
