"""The contract between scheduler and runner: what to compute in one step, in integers.

One row is one sequence's tokens ``[start, start + len(token_ids))``::

    block_tables[group]   b0        b1        b2
    slots             |. . . .|. . . .|. . . .|
                      0       4       8   ^start     ^stop = start + len(token_ids)
                      └── computed before ─┘└ now ──┘

There is no prefill and no decode: a row has one token or a thousand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class RowPlan:
    sequence_id: int
    start: int  # tokens whose keys and values are already in the pool
    token_ids: tuple[int, ...]  # to compute now
    # Per KV group, the block of each run of ``block_size`` positions of [0, stop). None: fell out of the group's window.
    block_tables: tuple[tuple[int | None, ...], ...]
    num_logits: int  # the logits after the row's last ``num_logits`` tokens are wanted

    @property
    def stop(self) -> int:
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """Copy-on-write: copy block ``source`` onto block ``target`` before the step, in every layer of ``group``."""

    group: int
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    rows: tuple[RowPlan, ...]
    copies: tuple[BlockCopy, ...] = ()  # in this order, all before any row is computed

    @property
    def num_tokens(self) -> int:
        return sum(len(row.token_ids) for row in self.rows)

    @property
    def sampled_ids(self) -> list[int]:
        """The sequence of each row of ``RunnerOutput.logits``, in order."""
        return [row.sequence_id for row in self.rows for _ in range(row.num_logits)]


@dataclass(frozen=True, slots=True)
class RunnerOutput:
    # [token whose logits are wanted, vocabulary], float32, in the order of ``StepPlan.sampled_ids``.
    logits: torch.Tensor


class Runner(Protocol):
    """Computes a plan. It knows tensors and the model; it knows no request, no setting and no text."""

    def run(self, plan: StepPlan) -> RunnerOutput:
        """Writes keys and values of every row into the pool, and returns each row's last ``num_logits`` logits."""
        ...
