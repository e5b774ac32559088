"""``SelfDraftLayerwiseRunner``: the first layers of a model, run ahead of the others for guesses, in the model's own KV blocks.

Guessing leaves keys and values of these layers in the slots where the guesses will be verified, and their states here. The step
that verifies goes on from the states; only tokens that have none, such as the last guess, begin at the embedding::

    guessing     t a b        layers [0, e), one token after the other; each says the next
    verifying    t a b        layers [e, L) of all of them together
                       c      layers [0, L)

Shape suffixes: T tokens · R rows whose logits are wanted · E hidden size · V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hasten.core.plan import BlockCopy, RowPlan, RunnerOutput, SlotMove, StepPlan
from hasten.kv.cache_manager import KvCacheManager
from hasten.runners.layerwise import LayerwiseRunner


@dataclasses.dataclass(slots=True)
class _Kept:
    """What guessing has computed of one line, from slot ``start`` on."""

    start: int
    token_ids: list[int]
    states: list[Tensor]  # [1, E] each

    def matches(self, row: RowPlan) -> int:
        """The tokens of the row, from its first, whose states are here.

        A row of one token may be that of a line that was preempted and has come back to other blocks: nothing is taken for it.
        """
        if row.start != self.start or row.tree or row.exits or len(row.token_ids) < 2:
            return 0
        pairs = enumerate(zip(self.token_ids, row.token_ids, strict=False))
        return next((i for i, (ours, theirs) in pairs if ours != theirs), min(len(self.token_ids), len(row.token_ids)))


class SelfDraftLayerwiseRunner:
    """A ``LayerwiseRunner`` around another, and the ``SelfDraftRunner`` of a drafter."""

    def __init__(
        self,
        runner: LayerwiseRunner,
        kv: KvCacheManager,
        read: Callable[[Tensor], Tensor],
        depth: int,
        draft_ids: Tensor | None = None,
    ) -> None:
        """``read``: states after ``depth`` layers [R, E] -> logits of the guesses [R, V], of the tokens ``draft_ids`` [V] where
        these are given. ``kv`` is the model's.
        """
        self._runner, self._kv, self._read, self._depth, self._draft_ids = runner, kv, read, depth, draft_ids
        self.num_layers, self.aux_layer_indices = runner.num_layers, runner.aux_layer_indices
        self._kept: dict[int, _Kept] = {}

    # ---------------------------------------------------------------- guessing

    def begin(self) -> None:
        self._kept.clear()

    def token_ids(self, columns: Tensor) -> Tensor:
        return columns if self._draft_ids is None else self._draft_ids[columns]

    @torch.inference_mode()
    def step(self, tokens: Sequence[tuple[int, int, int]]) -> tuple[list[int], Tensor]:
        """See ``SelfDraftRunner``. Where blocks are short there are no guesses: the lines will want them for tokens."""
        rows: list[RowPlan] = []
        places: list[int] = []
        copies: list[BlockCopy] = []
        for place, (sequence_id, position, token) in enumerate(tokens):
            short = min(allocator.num_available for allocator in self._kv.allocators) <= len(tokens)
            made = None if short else self._kv.reserve(sequence_id, position, position + 1)
            if made is not None:
                copies += made
                places.append(place)
                rows.append(RowPlan(sequence_id, position, (token,), self._kv.blocks(sequence_id), 1))
        if not rows:
            return [], torch.empty(0, 0)
        self._runner.copy(copies)
        state_RE = self._runner.layers(rows, None, 0, self._depth).clone()
        for i, row in enumerate(rows):
            kept = self._kept.setdefault(row.sequence_id, _Kept(row.start, [], []))
            kept.token_ids.append(row.token_ids[0])
            kept.states.append(state_RE[i : i + 1])
        return places, self._read(state_RE)

    # ---------------------------------------------------------------- verifying

    def run(self, plan: StepPlan) -> RunnerOutput:
        known = [kept.matches(row) if (kept := self._kept.get(row.sequence_id)) else 0 for row in plan.rows]
        if not any(known) or self.aux_layer_indices:  # a tap of a lower layer has to see all tokens
            return self._runner.run(plan)
        self._runner.copy(plan.copies)
        rest = [_from(row, count) for row, count in zip(plan.rows, known, strict=True) if count < len(row.token_ids)]
        parts: list[Tensor] = []
        if rest:
            below_TE = self._runner.layers(rest, None, 0, self._depth)
            parts = list(torch.split(below_TE, [len(row.token_ids) for row in rest]))
        states: list[Tensor] = []
        for row, count in zip(plan.rows, known, strict=True):
            states += self._kept[row.sequence_id].states[:count] if count else []
            states += [parts.pop(0)] if count < len(row.token_ids) else []
        return RunnerOutput(self._runner.finish(plan.rows, torch.cat(states), self._depth))

    def move(self, moves: Sequence[SlotMove]) -> None:
        self._runner.move(moves)

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        self._runner.copy(copies)

    def layers(self, rows: Sequence[RowPlan], hidden_TE: Tensor | None, first: int, last: int) -> Tensor:
        return self._runner.layers(rows, hidden_TE, first, last)

    def finish(self, rows: Sequence[RowPlan], hidden_TE: Tensor, first: int) -> Tensor:
        return self._runner.finish(rows, hidden_TE, first)

    def fill(self, rows: Sequence[RowPlan], hidden_TE: Tensor, first: int, last: int) -> None:
        self._runner.fill(rows, hidden_TE, first, last)

    def head(self, hidden_RE: Tensor) -> Tensor:
        return self._runner.head(hidden_RE)


def _from(row: RowPlan, count: int) -> RowPlan:
    """The row without its first ``count`` tokens."""
    if count == 0:
        return row
    return dataclasses.replace(row, start=row.start + count, token_ids=row.token_ids[count:], num_logits=0)
