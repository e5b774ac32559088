"""``Embedder``: one vector per token sequence, from the hidden states of the engine's runner.

Shape suffixes: N sequences · T tokens of a step · E hidden size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.core.plan import RowPlan
from hasten.engine.direct_steps import DirectSteps, not_finite
from hasten.kv.cache_manager import KvCacheManager
from hasten.ops.torch.inference import inference
from hasten.runners.base import LayerwiseRunner


@dataclass(slots=True, eq=False)
class _Text:
    token_ids: tuple[int, ...]
    sum_E: Tensor  # a view: sum over its computed tokens of their final hidden states
    sequence_id: int | None = None  # None: it has no blocks yet
    num_computed: int = 0


class Embedder(DirectSteps):
    """Computes embeddings between steps of the engine.

    Its blocks never enter the prefix cache, and it reads none there.
    """

    def __init__(
        self,
        runner: LayerwiseRunner,
        final_norm: Callable[[Tensor], Tensor],
        hidden_size: int,
        kv: KvCacheManager,
        max_num_batched_tokens: int,
    ) -> None:
        super().__init__(runner, kv, max_num_batched_tokens)
        self._layers, self._num_layers = runner.layers, runner.num_layers
        self._final_norm, self._hidden_size = final_norm, hidden_size

    @inference()
    def embed(self, sequences: Sequence[Sequence[int]], before_step: Callable[[], None] = lambda: None) -> Tensor:
        """Return the mean over tokens of the hidden states after the final norm, at length 1. [N, E], float32

        ``before_step`` is called before each step and may raise. No sequence may be empty. Raises ``CapacityError`` if the KV pool
        is too small, and ``HastenError`` if hidden states are not finite.
        """
        sums_NE = torch.zeros((len(sequences), self._hidden_size), dtype=torch.float32, device="cpu")
        texts = [_Text(tuple(token_ids), sum_E) for token_ids, sum_E in zip(sequences, sums_NE, strict=True)]
        waiting = deque(texts)
        try:
            while waiting:
                before_step()
                self._run(waiting)
        finally:
            for text in texts:
                self._close(text)
        if not bool(sums_NE.isfinite().all()):
            raise not_finite("hidden states")
        return F.normalize(sums_NE)  # a sum has the direction of the mean

    def _run(self, waiting: deque[_Text]) -> None:
        """Compute one step: the leading texts, as far as the token budget and the KV pool allow."""
        batch: list[tuple[_Text, RowPlan]] = []
        budget = self.max_num_batched_tokens
        while waiting and budget:
            text = waiting[0]
            row = self._plan(text, budget, may_drop_pins=not batch)
            if row is None:
                break  # it waits for the blocks of this batch
            budget -= len(row.token_ids)
            batch.append((waiting.popleft(), row))
        if not batch:
            raise self.capacity_error("a text", len(waiting[0].token_ids))
        hidden_TE = self._final_norm(self._layers([row for _, row in batch], None, 0, self._num_layers)).float()
        parts = torch.split(hidden_TE, [len(row.token_ids) for _, row in batch])
        for (text, row), part_TE in zip(batch, parts, strict=True):
            text.sum_E += part_TE.sum(0)
            text.num_computed = row.stop
            if row.stop == len(text.token_ids):
                self._close(text)
            else:  # only the last row of a step can be cut
                self.kv.commit(row.sequence_id, text.token_ids, row.stop, num_cacheable_tokens=0)
                waiting.appendleft(text)

    def _plan(self, text: _Text, max_tokens: int, *, may_drop_pins: bool) -> RowPlan | None:
        if text.sequence_id is None:
            text.sequence_id = self.new_sequence_id()
            self.kv.open(text.sequence_id, "", ())
        chunk = text.token_ids[text.num_computed : text.num_computed + max_tokens]
        planned = self.plan_row(text.sequence_id, text.num_computed, chunk, 0, may_drop_pins=may_drop_pins)
        return None if planned is None else planned[0]  # no block is shared, so none is copied

    def _close(self, text: _Text) -> None:
        if text.sequence_id is not None and self.kv.is_open(text.sequence_id):
            self.kv.close(text.sequence_id)
