"""``LayerwiseRunner``: a ``Runner`` whose layers can be run apart; ``KvCacheConfig``: its KV cache.

Shape suffixes: T tokens · R rows of logits · E hidden size · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hasten.core.plan import BlockCopy, RowPlan, Runner, RunnerOutput, StepPlan, StepView
from hasten.kv.group import KvGroup
from hasten.kv.pool import BlockPool, KvPool


@dataclass(frozen=True, slots=True)
class KvCacheConfig:
    """The size of a KV cache."""

    groups: Sequence[KvGroup]
    num_blocks: int  # per group
    block_size: int  # tokens
    dtype: torch.dtype  # the model's; a backend may store keys and values in another one

    def torch_pool(self) -> KvPool:
        return KvPool(self.groups, self.num_blocks, self.block_size, dtype=self.dtype, device=torch.device("cpu"))


class LayerwiseRunner(Runner, Protocol):
    """A ``Runner`` whose layers can be run apart.

    Rows here may hold a part of the tokens of a plan's row. Only their tokens, positions and block tables are read.
    """

    num_layers: int
    aux_layer_indices: tuple[int, ...]  # the layers, from 0, whose hidden states each output of ``run`` holds

    @property
    def pool(self) -> BlockPool:
        """The memory of its KV blocks."""
        ...

    def run(self, plan: StepPlan, hidden_TE: Tensor | None = None) -> RunnerOutput:
        """See ``Runner``. ``hidden_TE``: the embeddings of the plan's tokens; None: those of the model."""
        ...

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """Make the block copies of a step, before its first layers are run. ``run`` makes them itself."""
        ...

    def layers(self, rows: Sequence[RowPlan], hidden_TE: Tensor | None, first: int, last: int) -> StepView:
        """Return the hidden states after layers ``[first, last)`` of the tokens of all rows. [T, E]

        Writes keys and values. The input of layer 0 are embeddings without learned positions; ``hidden_TE`` None takes those of
        the model. The result may be passed to the next call.
        """
        ...

    def finish(self, rows: Sequence[RowPlan], hidden_TE: Tensor, first: int) -> Tensor:
        """Run all layers from ``first`` on; return the logits of the rows [R, V], float32."""
        ...

    def fill_kv(self, rows: Sequence[RowPlan], hidden_TE: Tensor, first: int, last: int) -> None:
        """Write keys and values of layers ``[first, last)`` for exited tokens, from their hidden states."""
        ...

    def head(self, hidden_RE: Tensor) -> Tensor:
        """Apply the final norm and the lm_head; return logits [R, V], float32."""
        ...
