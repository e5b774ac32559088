"""The documented order of the logits processors, and how they apply to rows with different settings.

::

    raw logits ─ masks ─ bias ─ penalties ─┬─ temperature ─ top-k ─ top-p ─ min-p ─ typical-p ─ + noise ─ token
                        process            │                     warp
                                           └─ greedy rows and beams stop here
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.bad_word_set import BadWordSet
from hasten.sampling.base import LogitsProcessor
from hasten.sampling.params_cache import ParamsCache
from hasten.sampling.processors.allowed_token_ids import AllowedTokenIds
from hasten.sampling.processors.bad_words import BadWords
from hasten.sampling.processors.frequency_penalty import FrequencyPenalty
from hasten.sampling.processors.guided_tokens import GuidedTokens
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
from hasten.sampling.row_tensors import select_rows

PROCESSORS: tuple[LogitsProcessor, ...] = (
    GuidedTokens(),
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
    """Return the name of the file that defines the processor."""
    return type(processor).__module__.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class ActiveProcessors:
    """The processors and warpers of a chain that apply to one request, in the order of the chain."""

    processors: tuple[LogitsProcessor, ...]
    warpers: tuple[LogitsProcessor, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """Logits processors in order: processors act on every request, warpers on requests that sample."""

    processors: tuple[LogitsProcessor, ...] = PROCESSORS
    warpers: tuple[LogitsProcessor, ...] = WARPERS
    _active: ParamsCache[ActiveProcessors] = field(default_factory=ParamsCache, init=False, repr=False, compare=False)

    @classmethod
    def with_bad_words(cls, word_set: Callable[[tuple[str, ...], bool], BadWordSet]) -> Chain:
        """Return the default chain for a model with a tokenizer, which knows the sets of bad words."""
        return cls(tuple(BadWords(word_set) if isinstance(one, BadWords) else one for one in PROCESSORS))

    def active(self, params: SamplingParams) -> ActiveProcessors:
        """Return what applies to rows with these settings."""
        return self._active.get(params, self._find_active)

    def process(self, logits_RV: Tensor, rows: Sequence[SamplingRow], *, may_write: bool = False) -> Tensor:
        """Return the logits after masks, bias and penalties [R, V]: the argument if none applies, else a copy.

        ``may_write``: the argument is written to instead of a copy.
        """
        return _apply(self.processors, (self.active(row.params).processors for row in rows), logits_RV, rows, may_write)

    def warp(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Return the logits after temperature and truncations [R, V], as ``process`` does; no row is greedy."""
        assert not any(row.params.greedy for row in rows), "a greedy row is not warped"
        return _apply(self.warpers, (self.active(row.params).warpers for row in rows), logits_RV, rows)

    def _find_active(self, params: SamplingParams) -> ActiveProcessors:
        return ActiveProcessors(
            tuple(processor for processor in self.processors if processor.applies(params)),
            tuple(warper for warper in self.warpers if warper.applies(params)),
        )


def _apply(
    processors: Sequence[LogitsProcessor],
    active: Iterable[Sequence[LogitsProcessor]],
    logits_RV: Tensor,
    rows: Sequence[SamplingRow],
    may_write: bool = False,
) -> Tensor:
    """Apply each processor to the rows that need it. ``active`` has the processors of each row."""
    rows_of: dict[int, list[int]] = {}  # by the id of the processor
    for i, row_processors in enumerate(active):
        for processor in row_processors:
            rows_of.setdefault(id(processor), []).append(i)
    result_RV = logits_RV
    for processor in processors:
        index = rows_of.get(id(processor))
        if index is None:
            continue
        if result_RV is logits_RV and not may_write:
            result_RV = logits_RV.clone()
        processed_NV = processor(select_rows(result_RV, index), [rows[i] for i in index])
        if len(index) == len(rows):
            result_RV = processed_NV
        else:
            result_RV.index_copy_(0, torch.tensor(index, dtype=torch.int64, device=logits_RV.device), processed_NV)
    return result_RV
