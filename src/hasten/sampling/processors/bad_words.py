"""Sequences of tokens that must not occur: the last token of each is forbidden where the tokens before it stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.row import SamplingRow
from hasten.sampling.token_pairs import TokenPairs


@dataclass(frozen=True, slots=True)
class BadWords:
    """As transformers does, a bad word that is an end-of-sequence token alone is passed over: every answer may end."""

    def applies(self, params: SamplingParams) -> bool:
        return bool(params.bad_words_ids)

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Writes to its argument."""
        return TokenPairs.of([_completing(row) for row in rows], logits_RV).forbid(logits_RV)


def _completing(row: SamplingRow) -> list[int]:
    """The tokens that would complete a bad word now."""
    words = row.params.bad_words_ids
    longest = max(map(len, words)) - 1
    end = tuple(row.token_ids[max(0, len(row.token_ids) - longest) :])
    return [
        word[-1]
        for word in words
        if (end[len(end) - len(word) + 1 :] == word[:-1] if 1 < len(word) <= len(end) + 1 else len(word) == 1)
        and not (len(word) == 1 and word[0] in row.eos_token_ids)
    ]
