"""The tokens that are guessed from: few enough that reading their part of the vocabulary projection is cheap.

A guess that cannot be named is a guess that is wrong, and no more (FR-Spec, Zhao et al., 2025, arXiv 2502.14856).

Shape suffix: N tokens of a stream.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.core.errors import InvalidOption
from hasten.training.corpus import Corpus

MOST = 32_000  # where nobody says: what EAGLE-3 heads are usually given


def draft_vocab_size(wanted: int | None, vocab_size: int) -> int:
    """How many tokens are guessed from. Raises ``InvalidOption`` for more than there are."""
    if wanted is not None and not 1 <= wanted <= vocab_size:
        raise InvalidOption("the draft vocabulary is out of range", got=f"{wanted:,}", allowed=f"1 to {vocab_size:,}, the model's")
    return wanted or min(vocab_size, MOST)


def draft_ids(corpus: Corpus, wanted: int | None, vocab_size: int) -> Tensor | None:
    """The tokens that are guessed from, rising; None: all. Raises like ``draft_vocab_size``."""
    count = draft_vocab_size(wanted, vocab_size)
    return None if count == vocab_size else frequent_tokens(corpus.train_N, vocab_size, count)


def frequent_tokens(ids_N: Tensor, vocab_size: int, count: int) -> Tensor:
    """The ``count`` most frequent ids, in ascending order; of equally frequent ones the smaller. [count]"""
    frequencies_V = torch.bincount(ids_N, minlength=vocab_size)
    return frequencies_V.argsort(descending=True, stable=True)[:count].sort().values
