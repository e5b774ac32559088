"""Masks the tokens that would complete a bad word, given as a text or as token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.bad_word_set import BadWordSet
from hasten.sampling.row import SamplingRow
from hasten.sampling.row_tensors import token_index


@dataclass(frozen=True, slots=True)
class BadWords:
    """The processor for bad words.

    ``word_set`` returns the set of bad words that are text, by ``skip_special_tokens``; None if there is no tokenizer.
    As token ids, a bad word that is an end-of-sequence token alone is ignored, as in transformers. As text, a token that ends the
    output and does not appear in it completes no bad word.
    """

    word_set: Callable[[tuple[str, ...], bool], BadWordSet] | None = None

    def applies(self, params: SamplingParams) -> bool:
        return bool(params.bad_words_ids) or (bool(params.bad_words) and self.word_set is not None)

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Write to the argument and return it."""
        if self.word_set is not None:
            for logits_V, row in zip(logits_RV, rows, strict=True):
                if row.params.bad_words:
                    _mask_texts(logits_V, row, self.word_set(row.params.bad_words, row.params.skip_special_tokens))
        logits_RV[token_index([_completing_tokens(row) for row in rows], logits_RV)] = -torch.inf
        return logits_RV


def _mask_texts(logits_V: Tensor, row: SamplingRow, words: BadWordSet) -> None:
    params = row.params
    hidden = () if params.ignore_eos else row.eos_token_ids
    hidden += () if params.include_stop_str_in_output else params.stop_token_ids
    hidden_ids = torch.tensor([i for i in hidden if i < len(logits_V)], dtype=torch.int64, device=logits_V.device)
    hidden_logits = logits_V[hidden_ids]
    logits_V[torch.from_numpy(words.completing_tokens(row.token_ids)).to(logits_V.device)] = -torch.inf
    logits_V[hidden_ids] = hidden_logits


def _completing_tokens(row: SamplingRow) -> list[int]:
    """Return the tokens that would complete a bad word of token ids now."""
    words = row.params.bad_words_ids
    if not words:
        return []
    end = tuple(row.token_ids[max(0, row.position - max(map(len, words)) + 1) :])
    return [
        word[-1]
        for word in words
        if end[len(end) - len(word) + 1 :] == word[:-1] and not (len(word) == 1 and word[0] in row.eos_token_ids)
    ]
