"""The documented order of the logits processors, and their application to rows of mixed settings.

::

    raw logits ─ masks ─ bias ─ penalties ─┬─ temperature ─ top-k ─ top-p ─ min-p ─ typical-p ─ + noise ─ token
                        process            │                     warp
                                           └─ greedy rows and beams stop here
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.base import LogitsProcessor, Shortening
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
from hasten.sampling.shortlist import Shortlist

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


# How many settings are remembered before all of them are forgotten.
MOST_KNOWN = 4096


@dataclass(frozen=True, slots=True)
class Needs:
    """What rows of the same settings need of a chain, in its order."""

    processors: tuple[LogitsProcessor, ...]
    warpers: tuple[LogitsProcessor, ...]
    shortening: tuple[Shortening, ...] | None  # the same warpers, if each of them can work on a short list


@dataclass(frozen=True, slots=True)
class Chain:
    processors: tuple[LogitsProcessor, ...] = PROCESSORS
    warpers: tuple[LogitsProcessor, ...] = WARPERS
    # By identity: settings never change, and a request brings the same object in every step. Saves asking each processor again.
    _known: dict[int, tuple[SamplingParams, Needs]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def needs(self, params: SamplingParams) -> Needs:
        known = self._known.get(id(params))
        if known is not None:  # it holds the settings, so no others can have got their id
            return known[1]
        warpers = tuple(warper for warper in self.warpers if warper.applies(params))
        shortening = tuple(warper for warper in warpers if isinstance(warper, Shortening))
        needs = Needs(
            tuple(processor for processor in self.processors if processor.applies(params)),
            warpers,
            shortening if len(shortening) == len(warpers) else None,
        )
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[id(params)] = (params, needs)
        return needs

    def process(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Masks, bias and penalties [R, V]. Leaves the argument alone, and returns it if nothing applies."""
        needing = _by_processor(self.needs(row.params).processors for row in rows)
        return _apply(self.processors, needing, logits_RV, rows)

    def warp(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Temperature to typical-p [R, V]; no row may be greedy. Leaves the argument alone, and returns it if nothing applies."""
        assert not any(row.params.greedy for row in rows), "a greedy row is not warped"
        needing = _by_processor(self.needs(row.params).warpers for row in rows)
        return _apply(self.warpers, needing, logits_RV, rows)

    def shorten(self, listed: Shortlist, rows: Sequence[SamplingRow]) -> None:
        """``warp`` on the likeliest tokens of each row; every row's settings must allow it (``Needs.shortening``)."""
        needed = {id(warper): warper for row in rows for warper in self.needs(row.params).shortening or ()}
        for warper in self.warpers:
            if id(warper) in needed:
                needed[id(warper)].shorten(listed, rows)


def _by_processor(each: Iterable[Sequence[LogitsProcessor]]) -> dict[int, list[int]]:
    """The rows that need a processor, by its id."""
    needing: dict[int, list[int]] = {}
    for i, processors in enumerate(each):
        for processor in processors:
            needing.setdefault(id(processor), []).append(i)
    return needing


def _apply(
    processors: Sequence[LogitsProcessor], needing: Mapping[int, list[int]], logits_RV: Tensor, rows: Sequence[SamplingRow]
) -> Tensor:
    result_RV = logits_RV
    for processor in processors:
        index = needing.get(id(processor))
        if index is None:
            continue
        if result_RV is logits_RV:
            result_RV = logits_RV.clone()
        if len(index) == len(rows):
            result_RV = processor(result_RV, rows)
        else:
            index_N = torch.tensor(index, device=logits_RV.device)
            subset_NV = processor(result_RV.index_select(0, index_N), [rows[i] for i in index])
            result_RV.index_copy_(0, index_N, subset_NV)
    return result_RV
