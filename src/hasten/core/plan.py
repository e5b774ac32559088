"""The contract between scheduler and runner: what one step computes, in integers.

One row computes tokens ``[start, start + len(token_ids))`` of one sequence::

    block_tables[group]   b0        b1        b2
    slots             |. . . .|. . . .|. . . .|
                      0       4       8   ^start     ^stop = start + len(token_ids)
                      └── computed before ─┘└ now ──┘

There is no prefill and no decode: a row has one token or a thousand. Its last tokens may be a draft tree (``tree``). Draft tokens
have consecutive slots. The position of each is one after its parent's, and it attends to its ancestors only::

    token_ids   t  a  b  c    tree -1 -1 0     t ─┬─ a ── c
    positions   p p+1 p+1 p+2                     └─ b
    slots       p p+1 p+2 p+3
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NewType, Protocol

from hasten.core.early_exit import ExitPlan

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class RowPlan:
    sequence_id: int
    start: int  # number of tokens whose keys and values are in the pool
    token_ids: tuple[int, ...]  # tokens to compute in this step
    # Per KV group, the block of each run of ``block_size`` positions of [0, stop). None: the block left the group's window.
    block_tables: tuple[tuple[int | None, ...], ...]
    num_logits: int  # logits are returned for the row's last ``num_logits`` tokens
    # Parents of the row's last ``len(tree)`` tokens, as indices into ``tree``; -1 is the token before them. Empty: no branches.
    tree: tuple[int, ...] = ()
    exit_plan: ExitPlan | None = None  # None: all layers compute all tokens

    @property
    def stop(self) -> int:
        """The end of the row's slots."""
        return self.start + len(self.token_ids)

    @property
    def positions(self) -> Sequence[int]:
        """The position of each token."""
        before_tree = range(self.start, self.stop - len(self.tree))
        if not self.tree:
            return before_tree
        positions = [*before_tree]
        for parent in self.tree:
            positions.append(positions[len(before_tree) + parent] + 1)
        return positions

    @property
    def attention_bitmasks(self) -> list[int]:
        """For each token, the tokens of the row that it attends to: bit j is token j. At most 64 tokens."""
        tree_start = len(self.token_ids) - len(self.tree)
        masks = [(2 << i) - 1 for i in range(tree_start)]
        for i, parent in enumerate(self.tree, tree_start):
            masks.append(masks[tree_start + parent] | 1 << i)
        return masks


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """Copy-on-write: copy a block to another before the step, in every layer of ``group``."""

    group: int
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class SlotMove:
    """Move the keys and values of one token to another slot, in every layer of ``group``."""

    group: int
    source: tuple[int, int]  # block, slot
    target: tuple[int, int]


@dataclass(frozen=True, slots=True)
class StepPlan:
    rows: tuple[RowPlan, ...]
    copies: tuple[BlockCopy, ...] = ()  # made in this order, before any row is computed

    @property
    def num_tokens(self) -> int:
        return sum(len(row.token_ids) for row in self.rows)

    @property
    def decode_only(self) -> bool:
        """Whether every computed token yields logits, so that the step computes no part of a prompt."""
        return all(row.num_logits == len(row.token_ids) for row in self.rows)

    @property
    def sampled_sequence_ids(self) -> list[int]:
        """The sequence of each row of ``RunnerOutput.logits``."""
        return [row.sequence_id for row in self.rows for _ in range(row.num_logits)]


def logits_indices(rows: Sequence[RowPlan]) -> list[int]:
    """Return the indices of the tokens that yield logits, among all tokens of these rows."""
    indices: list[int] = []
    end = 0
    for row in rows:
        end += len(row.token_ids)
        indices += range(end - row.num_logits, end)
    return indices


@dataclass(frozen=True, slots=True)
class CommittedSpan:
    """The computed tokens ``[start, start + len(token_indices))`` that a step added to a sequence."""

    sequence_id: int
    start: int
    token_indices: Sequence[int]  # indices into the step's tokens: the sequence's own tokens, then the accepted draft tokens


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What a step leaves in the KV pool."""

    rows: tuple[CommittedSpan, ...]
    moves: tuple[SlotMove, ...]  # close the gaps in accepted paths


# A tensor in the runner's own memory. The runner's next call overwrites it; clone it to keep it.
StepView = NewType("StepView", "torch.Tensor")


@dataclass(frozen=True, slots=True)
class RunnerOutput:
    """The result of one step. The next step overwrites its ``StepView`` tensors and no others."""

    logits: torch.Tensor  # [R, V], float32, one row per entry of ``StepPlan.sampled_sequence_ids``
    # Layer -> the hidden states after it, before the final norm, of all tokens of the step [T, E], float32.
    aux_hidden_states: Mapping[int, StepView] = field(default_factory=dict)
    exit_layers: Mapping[int, int] = field(default_factory=dict)  # row of ``logits`` -> layers run; rows with an exit plan only
    num_layers: int | None = None  # of the model; None if no row has an exit plan


class Runner(Protocol):
    """Computes step plans. It knows the model, but no request, no sampling settings and no text."""

    def run(self, plan: StepPlan) -> RunnerOutput:
        """Write keys and values of every row; return the logits of its last ``num_logits`` tokens."""
        ...

    def move(self, moves: Sequence[SlotMove]) -> None:
        """Move keys and values, in this order, before the call returns.

        The blocks of an accepted path then have no gaps and may be shared.
        """
        ...
