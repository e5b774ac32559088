"""``LayerwiseSelfDraftRunner``: the model's first layers draft, and verification continues from them.

Drafting writes keys and values of the first layers into the KV slots where the draft is verified, and keeps the hidden states.
Verification runs the remaining layers on these states. Tokens without one, such as the last draft token, start at the embedding::

    drafting     t a b        layers [0, e), one token at a time; each token gives the next one
    verifying    t a b        layers [e, L), all tokens in one step
                       c      layers [0, L)

Shape suffixes: T tokens · R rows of logits · E hidden size · V vocabulary of the drafts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hasten.core.plan import BlockCopy, RowPlan, RunnerOutput, StepPlan
from hasten.kv.cache_manager import KvCacheManager
from hasten.ops.torch.inference import inference
from hasten.runners.base import LayerwiseRunner


@dataclass(slots=True)
class _DraftedTokens:
    """The hidden states that drafting computed for one sequence, from slot ``start`` on."""

    start: int
    token_ids: list[int] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)  # [1, E] per token

    def matching(self, row: RowPlan) -> list[Tensor]:
        """Return the hidden states of the longest prefix of the row that was drafted."""
        # A row of one token may belong to a sequence that was preempted and has new blocks, without the drafted KV.
        if row.start != self.start or row.tree or row.exit_plan or len(row.token_ids) < 2:
            return []
        hidden = []
        for drafted, token_id, hidden_1E in zip(self.token_ids, row.token_ids, self.hidden, strict=False):
            if drafted != token_id:
                break
            hidden.append(hidden_1E)
        return hidden


class LayerwiseSelfDraftRunner:
    """The ``SelfDraftRunner`` of a layerwise runner; ``run`` verifies its drafts."""

    def __init__(
        self,
        runner: LayerwiseRunner,
        kv: KvCacheManager,
        draft_head: Callable[[Tensor], Tensor],
        num_draft_layers: int,
        draft_ids: Tensor | None = None,
    ) -> None:
        """``draft_head`` maps hidden states of the draft layers [R, E] to logits [R, V].

        ``kv`` is the model's. ``draft_ids`` [V] are the token ids of these logits; None: the model's vocabulary.
        """
        self._runner, self._kv, self._draft_head = runner, kv, draft_head
        self._num_draft_layers, self._draft_ids = num_draft_layers, draft_ids
        self._drafted: dict[int, _DraftedTokens] = {}

    def begin_round(self) -> None:
        self._drafted.clear()

    def token_ids(self, columns: Tensor) -> Tensor:
        return columns if self._draft_ids is None else self._draft_ids[columns]

    @inference()
    def step(self, tokens: Sequence[tuple[int, int, int]]) -> tuple[list[int], Tensor]:
        """See ``SelfDraftRunner``. Drafts nothing if few blocks are free: output tokens need them."""
        rows: list[RowPlan] = []
        indices: list[int] = []
        copies: list[BlockCopy] = []
        for i, (sequence_id, position, token) in enumerate(tokens):
            is_short = min(allocator.num_available for allocator in self._kv.allocators) <= len(tokens)
            reserved = None if is_short else self._kv.reserve(sequence_id, position, position + 1)
            if reserved is not None:
                copies += reserved
                indices.append(i)
                rows.append(RowPlan(sequence_id, position, (token,), self._kv.block_tables(sequence_id), 1))
        if not rows:
            return [], torch.empty(0, 0, dtype=torch.float32, device="cpu")
        self._runner.copy(copies)
        hidden_RE = self._runner.layers(rows, None, 0, self._num_draft_layers).clone()
        for i, row in enumerate(rows):
            drafted = self._drafted.setdefault(row.sequence_id, _DraftedTokens(row.start))
            drafted.token_ids += row.token_ids
            drafted.hidden.append(hidden_RE[i : i + 1])
        return indices, self._draft_head(hidden_RE)

    def run(self, plan: StepPlan) -> RunnerOutput:
        """Run all layers; tokens with a hidden state from drafting skip the draft layers."""
        drafted = [self._drafted[row.sequence_id].matching(row) if row.sequence_id in self._drafted else [] for row in plan.rows]
        if not any(drafted) or self._runner.aux_layer_indices:  # auxiliary layers below the exit need all tokens
            return self._runner.run(plan)
        self._runner.copy(plan.copies)
        rest = [_without_first(row, len(states)) for row, states in zip(plan.rows, drafted, strict=True)]
        rest = [row for row in rest if row.token_ids]
        computed: Sequence[Tensor] = ()
        if rest:
            hidden_TE = self._runner.layers(rest, None, 0, self._num_draft_layers)
            computed = torch.split(hidden_TE, [len(row.token_ids) for row in rest])
        remaining = iter(computed)
        hidden: list[Tensor] = []
        for row, states in zip(plan.rows, drafted, strict=True):
            hidden += states
            if len(states) < len(row.token_ids):
                hidden.append(next(remaining))
        return RunnerOutput(self._runner.finish(plan.rows, torch.cat(hidden), self._num_draft_layers))


def _without_first(row: RowPlan, count: int) -> RowPlan:
    if count == 0:
        return row
    return replace(row, start=row.start + count, token_ids=row.token_ids[count:], num_logits=0)
