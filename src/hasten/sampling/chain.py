"""The documented order of the logits processors, and their application to rows of mixed settings.

::

    raw logits ─ masks ─ bias ─ penalties ─┬─ temperature ─ top-k ─ top-p ─ min-p ─ typical-p ─ + noise ─ token
                        process            │                     warp
                                           └─ greedy rows and beams stop here
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.base import LogitsProcessor
from hasten.sampling.processors.allowed_token_ids import AllowedTokenIds
from hasten.sampling.processors.bad_words import BadWords
from hasten.sampling.processors.frequency_penalty import FrequencyPenalty
from hasten.sampling.processors.logit_bias import LogitBias
from hasten.sampling.processors.min_p import MinP
from hasten.sampling.processors.min_tokens import MinTokens
from hasten.sampling.processors.no_repeat_ngram import NoRepeatNgram
from hasten.sampling.processors.presence_penalty import PresencePenalty
from hasten.sampling.processors.repetition_penalty import RepetitionPenalty
from hasten.sampling.processors.temperature import Temperature
from hasten.sampling.processors.top_k import TopK
from hasten.sampling.processors.top_p import TopP
from hasten.sampling.processors.typical_p import TypicalP
from hasten.sampling.row import SamplingRow

PROCESSORS: tuple[LogitsProcessor, ...] = (
    AllowedTokenIds(),
    MinTokens(),
    BadWords(),
    NoRepeatNgram(),
    LogitBias(),
    RepetitionPenalty(),
    PresencePenalty(),
    FrequencyPenalty(),
)
WARPERS: tuple[LogitsProcessor, ...] = (Temperature(), TopK(), TopP(), MinP(), TypicalP())


def registered_name(processor: LogitsProcessor) -> str:
    """The name of the file that defines it."""
    return type(processor).__module__.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Chain:
    processors: tuple[LogitsProcessor, ...] = PROCESSORS
    warpers: tuple[LogitsProcessor, ...] = WARPERS

    def processes(self, params: SamplingParams) -> bool:
        """Whether ``process`` has anything to do for such a row."""
        return any(processor.applies(params) for processor in self.processors)

    def process(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Masks, bias and penalties [R, V]. Leaves the argument alone, and returns it if nothing applies."""
        return _apply(self.processors, logits_RV, rows)

    def warp(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Temperature to typical-p [R, V]; no row may be greedy. Leaves the argument alone, and returns it if nothing applies."""
        assert not any(row.params.greedy for row in rows), "a greedy row is not warped"
        return _apply(self.warpers, logits_RV, rows)


def _apply(processors: Sequence[LogitsProcessor], logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    result_RV = logits_RV
    for processor in processors:
        needing = [i for i, row in enumerate(rows) if processor.applies(row.params)]
        if not needing:
            continue
        if result_RV is logits_RV:
            result_RV = logits_RV.clone()
        if len(needing) == len(rows):
            result_RV = processor(result_RV, rows)
        else:
            index_N = torch.tensor(needing, device=logits_RV.device)
            subset_NV = processor(result_RV.index_select(0, index_N), [rows[i] for i in needing])
            result_RV.index_copy_(0, index_N, subset_NV)
    return result_RV
