"""``LayerwiseRunner``: a runner whose layers can also be run apart, so that not all tokens of a step need go through all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from hasten.core.plan import BlockCopy, RowPlan, Runner


class LayerwiseRunner(Runner, Protocol):
    """Rows here are parts of a plan's rows: only their tokens, places and block tables count."""

    num_layers: int
    aux_layer_indices: tuple[int, ...]  # layers whose hidden states come with every output of ``run``

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """Copy-on-write, before the first layers of a step are run; ``run`` does it itself."""
        ...

    def layers(self, rows: Sequence[RowPlan], hidden_TE: Tensor | None, first: int, last: int) -> Tensor:
        """Layers ``[first, last)`` of the tokens of all rows, end to end; None begins with their embeddings. [T, E]

        Writes their keys and values. The result is valid until the next call of anything here, and may be handed to the next one.
        """
        ...

    def finish(self, rows: Sequence[RowPlan], hidden_TE: Tensor, first: int) -> Tensor:
        """Layers from ``first`` on, and the logits after each row's last ``num_logits`` tokens. [R, V], float32"""
        ...

    def fill(self, rows: Sequence[RowPlan], hidden_TE: Tensor, first: int, last: int) -> None:
        """Keys and values of layers ``[first, last)`` for tokens that have left, from their last states."""
        ...

    def head(self, hidden_RE: Tensor) -> Tensor:
        """Final norm and vocabulary projection. Logits [R, V], float32."""
        ...
