"""The contract between scheduler and runner: what to compute in one step, in integers.

One row is one sequence's tokens ``[start, start + len(token_ids))``::

    block_tables[group]   b0        b1        b2
    slots             |. . . .|. . . .|. . . .|
                      0       4       8   ^start     ^stop = start + len(token_ids)
                      └── computed before ─┘└ now ──┘

There is no prefill and no decode: a row has one token or a thousand. Its last tokens may be guesses that branch (``tree``): they
lie in consecutive slots as they come, but each stands at the position after its parent's, and sees its ancestors only::

    token_ids   t  a  b  c    tree -1 -1 0     t ─┬─ a ── c
    positions   p p+1 p+1 p+2                     └─ b
    slots       p p+1 p+2 p+3
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from hasten.core.early_exit import ExitPlan

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
    # Of the row's last ``len(tree)`` tokens: which of them each follows, -1 the token before them all. Empty: nothing branches.
    tree: tuple[int, ...] = ()
    exit_plan: ExitPlan | None = None  # None: all layers compute all of its tokens

    @property
    def stop(self) -> int:
        """Where its slots end."""
        return self.start + len(self.token_ids)

    @property
    def positions(self) -> Sequence[int]:
        """Of each token."""
        trunk = range(self.start, self.stop - len(self.tree))
        if not self.tree:
            return trunk
        positions = [*trunk]
        for parent in self.tree:
            positions.append(positions[len(trunk) + parent] + 1)
        return positions

    @property
    def attention_bitmasks(self) -> list[int]:
        """Which tokens of the row each token sees, itself included: bit j is token j. The row has at most 64 tokens."""
        trunk = len(self.token_ids) - len(self.tree)
        views = [(2 << i) - 1 for i in range(trunk)]
        for i, parent in enumerate(self.tree, trunk):
            views.append(views[trunk + parent] | 1 << i)
        return views


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """Copy-on-write: copy block ``source`` onto block ``target`` before the step, in every layer of ``group``."""

    group: int
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class SlotMove:
    """The keys and values of one token go to another slot, in every layer of ``group``."""

    group: int
    source: tuple[int, int]  # block, slot
    target: tuple[int, int]


@dataclass(frozen=True, slots=True)
class StepPlan:
    rows: tuple[RowPlan, ...]
    copies: tuple[BlockCopy, ...] = ()  # in this order, all before any row is computed

    @property
    def num_tokens(self) -> int:
        return sum(len(row.token_ids) for row in self.rows)

    @property
    def decode_only(self) -> bool:
        """Whether all that is computed is to be chosen from or verified: no part of a prompt."""
        return all(row.num_logits == len(row.token_ids) for row in self.rows)

    @property
    def sampled_sequence_ids(self) -> list[int]:
        """The sequence of each row of ``RunnerOutput.logits``, in order."""
        return [row.sequence_id for row in self.rows for _ in range(row.num_logits)]


def logits_indices(rows: Sequence[RowPlan]) -> list[int]:
    """Of all tokens of these rows, end to end: the places of those after which logits are wanted."""
    wanted: list[int] = []
    end = 0
    for row in rows:
        end += len(row.token_ids)
        wanted += range(end - row.num_logits, end)
    return wanted


@dataclass(frozen=True, slots=True)
class CommittedSpan:
    """What came of one row: the sequence has tokens ``[start, start + len(tokens))`` computed by these tokens of the step."""

    sequence_id: int
    start: int
    token_indices: Sequence[int]  # those of the trunk, then those of the accepted path


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What a step has left in the pool."""

    rows: tuple[CommittedSpan, ...]
    moves: tuple[SlotMove, ...]  # that bring accepted paths together


@dataclass(frozen=True, slots=True)
class RunnerOutput:
    # [token whose logits are wanted, vocabulary], float32, in the order of ``StepPlan.sampled_sequence_ids``.
    logits: torch.Tensor
    # Of each layer that the runner was made to tap: the hidden state after it, before the final norm, of all tokens of the step
    # [T, E], float32. Valid until the next step.
    aux_hidden_states: Mapping[int, torch.Tensor] = field(default_factory=dict)
    # Of the rows of ``logits`` that come from rows with ``exits``: how many layers computed them, of how many.
    exit_layers: Mapping[int, int] = field(default_factory=dict)
    num_layers: int | None = None  # None where there are no depths


class Runner(Protocol):
    """Computes a plan. It knows tensors and the model; it knows no request, no setting and no text."""

    def run(self, plan: StepPlan) -> RunnerOutput:
        """Writes keys and values of every row into the pool, and returns each row's last ``num_logits`` logits."""
        ...

    def move(self, moves: Sequence[SlotMove]) -> None:
        """In this order, now: the accepted path of a tree comes to lie without gaps, before anybody may find its blocks."""
        ...
