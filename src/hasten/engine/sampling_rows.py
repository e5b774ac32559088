"""``SampledRow``: a row of logits and the completion that may take its token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hasten.core.concat_view import ConcatView
from hasten.core.draft import Draft
from hasten.engine.completion import Completion
from hasten.sampling.guides.base import TokenGuide
from hasten.sampling.row import SamplingRow
from hasten.scheduling.sequence import Sequence

NO_NODE = -1


class SampledRow(NamedTuple):
    row: int  # of the logits
    sequence: Sequence
    completion: Completion
    node: int  # draft node whose path the row has seen; NO_NODE: the sequence's own tokens alone
    exit_layer: int | None  # layers that computed the row; None: the request has no exit rule


def sampling_row(sequence: Sequence, output_index: int, guide: TokenGuide | None, node: int = NO_NODE) -> SamplingRow:
    """Return the sampler's view of a sequence, as if the path to ``node`` of its draft were accepted."""
    request = sequence.request
    token_ids = sequence.vocabulary_token_ids
    if node >= 0:
        token_ids = ConcatView(token_ids, draft_path(sequence.draft, node))
    history = None if node >= 0 else sequence.history
    num_prompt_tokens = len(request.prompt_token_ids)
    return SamplingRow(request.params, token_ids, num_prompt_tokens, request.eos_token_ids, output_index, history, guide)


def draft_path(draft: Draft, node: int) -> list[int]:
    """Return the tokens from the root to ``node``."""
    tokens: list[int] = []
    while node >= 0:
        tokens.append(draft.token_ids[node])
        node = draft.parents[node]
    return tokens[::-1]


def logits_of(logits_RV: Tensor, rows: list[SampledRow]) -> Tensor:
    """Return the logits of these rows: a copy, unless they are all rows in order."""
    index = [sampled.row for sampled in rows]
    if index == list(range(len(logits_RV))):
        return logits_RV
    return logits_RV[torch.tensor(index, dtype=torch.int64, device=logits_RV.device)]
