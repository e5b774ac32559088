"""``Corpus``: a training stream and a validation stream of token ids, and the batches cut from them.

A document's content decides which stream it belongs to. The seed and the step decide which sequences a step reads, so a resumed
run reads the same batches.

Shape suffixes: N tokens of a stream · B sequences · S tokens per sequence · V vocabulary · D draft vocabulary.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hasten.core.errors import InvalidOption

MIN_VALIDATION_SECTIONS = 256  # sections that the validation stream has at least, if the text is long enough
DEFAULT_DRAFT_VOCAB = 32_000  # the usual size of an EAGLE-3 head's vocabulary
_GOLDEN_RATIO = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True)
class Batch:
    ids_BS: Tensor  # int64
    seed: int  # of the random numbers of this step; the same when the step is repeated
    is_output_BS: Tensor | None = None  # bool: the tokens to predict; None: all
    indices: tuple[int, ...] | None = None  # of its sequences in a ``NumberedSource``; None: from another source

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


class BatchSource(Protocol):
    """What the training loop reads."""

    @property
    def summary(self) -> str:
        """One line for the log: how much there is."""
        ...

    def batch(self, step: int, size: int, seq_len: int, seed: int) -> Batch:
        """Return ``size`` sequences, which depend on the arguments only."""
        ...

    def validation_batches(self, size: int, seq_len: int, limit: int) -> Iterator[Batch]:
        """Yield at most ``limit`` sequences in batches, the same at every call."""
        ...


class NumberedSource(BatchSource, Protocol):
    """Sequences that are the same in every epoch, so that results for each can be stored."""

    @property
    def predicted_counts_N(self) -> Tensor:
        """The number of predicted positions of each sequence, int64 [N]."""
        ...

    def numbered(self, indices: Sequence[int]) -> Batch:
        """Return these sequences as one batch, which has their indices."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields."""
        ...


@dataclass(frozen=True, slots=True)
class Corpus:
    train_N: Tensor  # int32
    validation_N: Tensor  # int32

    @property
    def summary(self) -> str:
        return f"{len(self.train_N):,} tokens for training, {len(self.validation_N):,} for validation"

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields."""
        return {"train_N": self.train_N, "validation_N": self.validation_N}

    @classmethod
    def split(cls, documents: Sequence[Sequence[int]], seq_len: int, fraction: float, separator: int | None) -> Corpus:
        """Return a corpus whose validation stream holds ``fraction`` of all tokens.

        The documents of the smallest hashes are for validation. Long documents are cut into sections first, so that the validation
        stream covers many passages of them. ``separator`` follows each document, if given. Raises ``InvalidOption`` for less than
        one training and two validation sequences.
        """
        end = [] if separator is None else [separator]
        parts = [array("i", [*document, *end]) for document in documents if len(document)]
        total = sum(map(len, parts))
        min_validation = max(2 * seq_len, int(total * fraction))
        sections = sorted(_sections(parts, max(seq_len, min_validation // MIN_VALIDATION_SECTIONS), seq_len))
        validation, train = array("i"), array("i")
        train_sections: list[tuple[int, array[int]]] = []
        last_digest = b""
        for digest, position, section in sections:
            # Copies of a section have the same hash and stay in the same stream.
            if len(validation) < min_validation or digest == last_digest:
                validation.extend(section)
                last_digest = digest
            else:
                train_sections.append((position, section))
        for _, section in sorted(train_sections):
            train.extend(section)
        if len(train) < seq_len or len(validation) < 2 * seq_len:
            raise InvalidOption(
                "the data is too short for one training sequence and two validation sequences",
                got=f"{total:,} tokens in {len(parts)} documents, {len({digest for digest, _, _ in sections})} distinct sections",
                allowed=f"at least {3 * seq_len:,} tokens for sequences of {seq_len}",
                remedy="Give more text, or shorter sequences with --seq-len",
            )
        return cls(*(torch.frombuffer(stream, dtype=torch.int32).clone() for stream in (train, validation)))

    def batch(self, step: int, size: int, seq_len: int, seed: int) -> Batch:
        """Return the ``size`` sequences of a step. Each epoch cuts the stream at other offsets and shuffles."""
        per_epoch = max(1, (len(self.train_N) - seq_len) // seq_len)
        rows = range(step * size, (step + 1) * size)
        starts: list[int] = []
        for epoch in range(rows[0] // per_epoch, rows[-1] // per_epoch + 1):
            generator = torch.Generator().manual_seed(derived_seed(seed, "epoch", epoch))
            shift = int(torch.randint(min(seq_len, len(self.train_N) - seq_len) + 1, (1,), generator=generator))
            order = torch.randperm(per_epoch, generator=generator)
            begin, end = max(rows[0], epoch * per_epoch), min(rows[-1] + 1, (epoch + 1) * per_epoch)
            starts += [shift + seq_len * int(order[row % per_epoch]) for row in range(begin, end)]
        ids_BS = torch.stack([self.train_N[start : start + seq_len] for start in starts]).long()
        return Batch(ids_BS, derived_seed(seed, "step", step))

    def validation_batches(self, size: int, seq_len: int, limit: int) -> Iterator[Batch]:
        """Yield at most ``limit`` sequences in batches, spread evenly over one half of the validation stream.

        Every call yields the same batches. The other half is for ``calibration_sequences``.
        """
        chosen = self.validation_indices(seq_len, limit)
        sequences_BS = self._validation_sequences(chosen, seq_len)
        for first, ids_BS in zip(range(0, len(chosen), size), torch.split(sequences_BS, size), strict=True):
            yield Batch(ids_BS, derived_seed(0, "held out", first))

    def validation_indices(self, seq_len: int, limit: int) -> list[int]:
        """Return which sequences of the validation stream ``validation_batches`` yields, ascending."""
        indices = self._spread_indices(seq_len)
        return sorted(indices[: len(indices) - len(indices) // 2][:limit])

    def calibration_sequences(self, seq_len: int, limit: int, seed: int) -> Tensor:
        """Return at most ``limit`` shuffled sequences that no validation batch has, [B, S] int64."""
        indices = self._spread_indices(seq_len)
        chosen = indices[::-1][: min(limit, len(indices) // 2)]
        generator = torch.Generator().manual_seed(derived_seed(seed, "unread", 0))
        order = torch.randperm(len(chosen), generator=generator).tolist()
        return self._validation_sequences([chosen[i] for i in order], seq_len)

    def _spread_indices(self, seq_len: int) -> list[int]:
        """Return the indices of all validation sequences in an order whose every prefix is spread evenly."""
        return sorted(range(len(self.validation_N) // seq_len), key=lambda index: index * _GOLDEN_RATIO % 1)

    def _validation_sequences(self, indices: Sequence[int], seq_len: int) -> Tensor:
        return torch.stack([self.validation_N[index * seq_len : (index + 1) * seq_len] for index in indices]).long()


def shuffled_indices(step: int, size: int, count: int, seed: int) -> list[int]:
    """Return which ``size`` of ``count`` fixed sequences a step reads. Each epoch shuffles them all."""
    rows = range(step * size, (step + 1) * size)
    indices: list[int] = []
    for epoch in range(rows[0] // count, rows[-1] // count + 1):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(derived_seed(seed, "epoch", epoch)))
        begin, end = max(rows[0], epoch * count), min(rows[-1] + 1, (epoch + 1) * count)
        indices += [int(order[row % count]) for row in range(begin, end)]
    return indices


def draft_token_ids(corpus: Corpus, draft_vocab: int | None, vocab_size: int) -> Tensor | None:
    """Return the ``draft_vocab`` most frequent tokens, ascending [D]; None for the entire vocabulary.

    ``draft_vocab`` None: at most 32,000 tokens. A token outside them is never drafted (FR-Spec, Zhao et al., 2025, arXiv
    2502.14856). Raises ``InvalidOption`` for a size out of range.
    """
    if draft_vocab is not None and not 1 <= draft_vocab <= vocab_size:
        allowed = f"1 to {vocab_size:,}, the model's vocabulary"
        raise InvalidOption("the draft vocabulary is out of range", got=f"{draft_vocab:,}", allowed=allowed)
    count = draft_vocab or min(vocab_size, DEFAULT_DRAFT_VOCAB)
    if count == vocab_size:
        return None
    frequencies_V = torch.bincount(corpus.train_N, minlength=vocab_size)
    return frequencies_V.argsort(descending=True, stable=True)[:count].sort().values


def _sections(parts: Sequence[array[int]], max_length: int, seq_len: int) -> Iterator[tuple[bytes, int, array[int]]]:
    """Yield (hash, position, tokens) of each part, or of its sections if it is longer than ``max_length``.

    A section has ``seq_len`` tokens, and the last one also the remaining tokens. Equal parts have equal hashes.
    """
    position = 0
    for part in parts:
        digest = hashlib.sha256(part.tobytes()).digest()
        count = 1 if len(part) <= max_length else len(part) // seq_len
        starts = [number * seq_len for number in range(count)]
        for start, end in zip(starts, [*starts[1:], len(part)], strict=True):
            section_digest = digest if count == 1 else hashlib.sha256(digest + start.to_bytes(8, "little")).digest()
            yield section_digest, position, part[start:end]
            position += 1


def derived_seed(seed: int, use: str, number: int) -> int:
    """Return 63 bits, independent for every use and number. Another ``use`` string changes all results."""
    digest = hashlib.sha256(f"{seed}/{use}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
