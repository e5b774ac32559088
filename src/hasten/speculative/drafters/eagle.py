"""EAGLE-3: a head drafts from the target's hidden states (Li et al., 2025, arXiv 2503.01840).

The head has KV blocks of its own, with one slot per position whose hidden states the target has computed. It never sees what the
target took from its prefix cache: there its sequence begins later and it drafts a little worse. While no drafts are wanted, the
hidden states are kept pending, within a limit, and read in one call later.

Shape suffixes: T tokens · R rows · E hidden size · A aux layers · D draft vocabulary · K candidates.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hasten.core.draft import Draft
from hasten.core.plan import BlockCopy, RowPlan
from hasten.kv.cache_manager import KvCacheManager
from hasten.ops.torch.inference import inference
from hasten.speculative.candidates import top_candidates
from hasten.speculative.cost_model import CostModel
from hasten.speculative.draft_tree import RANKS
from hasten.speculative.drafters.base import ComputedSpan, DraftRequest, Expansion, ModelDrafter, TargetOutput
from hasten.speculative.policy import TreeExpansion

MIN_PREFILL = 32  # tokens: the time of shorter reads is that of a draft call
MAX_PENDING = 4096  # pending states of a sequence, in tokens
TOTAL_PENDING = 2  # limit of pending states of all sequences, in limits of one
WIDTH = 2  # nodes of one depth that are expanded


class EagleRunner(Protocol):
    """The head over its own KV pool."""

    def fuse(self, states_TF: Tensor) -> Tensor:
        """Project the aux hidden states, side by side [T, A·E], to [T, E]."""
        ...

    def run(self, rows: Sequence[RowPlan], copies: Sequence[BlockCopy], hidden_TE: Tensor) -> tuple[Tensor, Tensor]:
        """Run the layer; return hidden states [T, E] and logits [R, D], valid until the next call.

        ``rows`` hold the token after each hidden state; logits are those of their last ``num_logits`` tokens. Copies come first.
        """
        ...

    def token_ids(self, columns: Tensor) -> Tensor:
        """Map columns of the logits to the target's token ids."""
        ...


@dataclass(slots=True)
class _DraftKvState:
    """Positions ``[begin, begin + length)`` are in slots 0 on; the following ones are pending."""

    begin: int
    length: int = 0
    pending: tuple[Tensor, ...] = ()  # aux hidden states side by side [T, A·E]
    num_pending: int = 0  # tokens

    @property
    def end(self) -> int:
        return self.begin + self.length + self.num_pending

    def add(self, states_TF: Tensor) -> None:
        self.pending, self.num_pending = (*self.pending, states_TF), self.num_pending + len(states_TF)

    def take(self, count: int) -> Tensor:
        """Move the first ``count`` pending states into the slots, and return them."""
        states_TF = torch.cat(self.pending)
        # A view would keep the memory of all of them.
        self.pending, self.num_pending = ((states_TF[count:].clone(),) if count < len(states_TF) else ()), len(states_TF) - count
        self.length += count
        return states_TF[:count]


class _Root(NamedTuple):
    """The last position that the head has read of a sequence."""

    token_id: int  # after the hidden state
    fused_1E: Tensor  # the head's input
    hidden_1E: Tensor  # its output
    logits_1D: Tensor


@dataclass(slots=True, eq=False)
class _Expansion(Expansion):
    """A tree that grows by one depth per call, at its most likely nodes.

    Each call recomputes the tree from the sequence's last token: these are few rows, and a row attends to its own step only.
    """

    kv_state: _DraftKvState
    root: _Root
    computed: list[int] = field(default_factory=list)  # nodes that the head has read, parents first
    hidden: dict[int, Tensor] = field(default_factory=dict)  # node -> the head's output there [1, E]

    def __post_init__(self) -> None:
        self.hidden[-1] = self.root.hidden_1E

    def grow(self, tokens: Sequence[Sequence[int]], probs: Sequence[Sequence[float]]) -> None:
        """Add the choices after each frontier node; the most likely of them are the next frontier."""
        greedy, new = self.request.request.params.greedy, list[int]()
        for node, own_tokens, own_probs in zip(self.tree.frontier, tokens, probs, strict=True):
            new += self.tree.add_choices(node, zip(own_tokens, own_probs, strict=True), greedy)
        self.tree.frontier = sorted(new, key=lambda node: -self.tree.nodes[node].acceptance_prob)[:WIDTH]

    def next_row(self) -> tuple[tuple[int, ...], tuple[int, ...], list[Tensor]]:
        """Return tokens to read, their parents and hidden inputs; mark the frontier as computed."""
        self.computed += self.tree.frontier
        index = {-1: -1} | {node: i for i, node in enumerate(self.computed)}
        nodes = [self.tree.nodes[node] for node in self.computed]
        tokens = (self.root.token_id, *(node.token_id for node in nodes))
        return tokens, tuple(index[node.parent] for node in nodes), [self.root.fused_1E, *(self.hidden[n.parent] for n in nodes)]


class Eagle(ModelDrafter):
    def __init__(
        self,
        runner: EagleRunner,
        kv: KvCacheManager,
        *,
        costs: CostModel,
        aux_layer_indices: tuple[int, ...],
        num_tokens: int = 8,
        max_depth: int = 5,
        max_positions: int,
        max_pending: int = MAX_PENDING,
    ) -> None:
        """``costs`` of the verifying steps. ``max_pending``: kept hidden states of a sequence, in tokens."""
        self._runner, self._kv, self._aux_layer_indices = runner, kv, aux_layer_indices
        self._max_positions, self._max_pending = max_positions, max_pending
        self.num_tokens, self._max_depth = num_tokens, max_depth
        self._kv_states: dict[int, _DraftKvState] = {}
        self._expansion = TreeExpansion(costs)

    @property
    def aux_layer_indices(self) -> tuple[int, ...]:
        return self._aux_layer_indices

    @property
    def draft_lengths(self) -> tuple[int, ...]:
        return (1, 2, 3, 4, 6, 8, 12)

    def round_seconds(self, batch_size: int, num_tokens: int) -> float | None:
        # The first depth comes from the call that reads the new hidden states.
        return self._expansion.draft_costs.round_seconds(batch_size, min(num_tokens, self._max_depth) - 1, extra_calls=1)

    def prefill_seconds(self, requests: Sequence[DraftRequest]) -> float:
        return self._expansion.draft_costs.prefill_seconds(self._num_unread(requests))

    def _num_unread(self, requests: Sequence[DraftRequest]) -> int:
        states = [self._kv_states[r.sequence_id] for r in requests if r.sequence_id in self._kv_states]
        return sum(max(0, state.num_pending - 1) for state in states)

    @inference()
    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        begin = time.perf_counter()
        ready = [request for request in requests if request.max_draft_tokens and self._is_ready(request)]
        num_unread, costs = self._num_unread(ready), self._expansion.draft_costs
        roots = self._read([(request, self._kv_states[request.sequence_id].num_pending) for request in ready])
        if num_unread > MIN_PREFILL:
            costs.record_prefill(num_unread, time.perf_counter() - begin)
        self._expansion.record_acceptance(requests)
        expansions = [
            _Expansion(r, self._expansion.new_tree(r), self._kv_states[r.sequence_id], roots[r.sequence_id])
            for r in requests
            if r.sequence_id in roots
        ]
        self._grow(expansions, [expansion.root.logits_1D for expansion in expansions])
        first_seconds = time.perf_counter() - begin
        num_calls = self._expansion.expand(expansions, self.num_tokens, min(self.num_tokens, self._max_depth) - 1, self._advance)
        if expansions and num_unread <= MIN_PREFILL and costs.seconds(len(expansions)) is None:
            costs.record(len(expansions), first_seconds)  # an upper bound, as the step before has evicted the head's weights
        return self._expansion.drafts(requests, self.num_tokens, num_calls)

    def _is_ready(self, request: DraftRequest) -> bool:
        """Whether the hidden states of all tokens but the last are known."""
        state = self._kv_states.get(request.sequence_id)
        return state is not None and state.num_pending > 0 and state.end == len(request.token_ids) - 1

    @inference()
    def observe(self, requests: Sequence[DraftRequest], output: TargetOutput) -> None:
        """Keep the last step's hidden states, drop ended sequences, and fork with the target."""
        for sequence_id in [known for known in self._kv_states if not output.is_alive(known)]:
            self._drop(sequence_id)
        parents = {}
        for span in output.spans:
            parents[span.request.request.request_id] = span.request
            self._add_pending(span, output.aux_hidden_states)
        self._limit_pending()
        new = [r for r in requests if r.sequence_id not in self._kv_states and r.request.request_id in parents]
        forked = {r.request.request_id: parents[r.request.request_id] for r in new}
        # A parent and its forks have different tokens after the last hidden state; all before it is common.
        ready = [request for request in forked.values() if self._is_ready(request)]
        self._read([(request, self._kv_states[request.sequence_id].num_pending - 1) for request in ready], num_logits=0)
        for request in new:
            parent = forked[request.request.request_id]
            if self._is_ready(parent):
                self._kv.fork(parent.sequence_id, request.sequence_id)
                self._kv_states[request.sequence_id] = replace(self._kv_states[parent.sequence_id])

    def _add_pending(self, span: ComputedSpan, aux_hidden_states: Mapping[int, Tensor]) -> None:
        sequence_id = span.request.sequence_id
        state = self._kv_states.get(sequence_id)
        if state is None or state.end != span.start:  # a new sequence, or one that was recomputed
            self._drop(sequence_id)
            state = self._open(sequence_id, span.start)
        rows = _row_index(span.rows)
        state.add(torch.cat([aux_hidden_states[layer][rows] for layer in self._aux_layer_indices], dim=1))

    def _limit_pending(self) -> None:
        """Drop the oldest pending states where there are too many."""
        for sequence_id, state in list(self._kv_states.items()):
            if state.num_pending > self._max_pending:
                self._drop_oldest(sequence_id)
        total = sum(state.num_pending for state in self._kv_states.values())
        while total > TOTAL_PENDING * self._max_pending:
            longest = max(self._kv_states, key=lambda known: self._kv_states[known].num_pending)
            total -= self._kv_states[longest].num_pending
            self._drop_oldest(longest)
            total += self._kv_states[longest].num_pending if longest in self._kv_states else 0

    def _drop_oldest(self, sequence_id: int) -> None:
        """Keep the newer half of the pending states alone: for the head, the sequence begins later.

        A sequence with a single one is dropped.
        """
        state = self._kv_states[sequence_id]
        end, kept = state.end, min(state.num_pending, self._max_pending) // 2
        if not kept:
            self._drop(sequence_id)
            return
        states_TF = torch.cat(state.pending)[-kept:].clone()
        self._drop(sequence_id)
        self._open(sequence_id, end - kept).add(states_TF)

    def _open(self, sequence_id: int, begin: int) -> _DraftKvState:
        self._kv.open(sequence_id, "", ())
        state = self._kv_states[sequence_id] = _DraftKvState(begin)
        return state

    def _read(self, requests: Sequence[tuple[DraftRequest, int]], num_logits: int = 1) -> dict[int, _Root]:
        """Move pending states into slots, and return the head's output at each sequence's last one."""
        rows: list[RowPlan] = []
        copies: list[BlockCopy] = []
        states: list[Tensor] = []
        for request, count in requests:
            if count > 0 and (row := self._plan_row(request, count, copies, num_logits)) is not None:
                rows.append(row)
                states.append(self._kv_states[request.sequence_id].take(count))
        if not rows:
            return {}
        fused_TE = self._runner.fuse(torch.cat(states))
        hidden_TE, logits_RD = self._runner.run(rows, copies, fused_TE)
        roots: dict[int, _Root] = {}
        end = 0
        for i, row in enumerate(rows):
            end += len(row.token_ids)
            if num_logits:
                hidden_1E = hidden_TE[end - 1 : end].clone()  # the next call overwrites the runner's memory
                roots[row.sequence_id] = _Root(row.token_ids[-1], fused_TE[end - 1 : end], hidden_1E, logits_RD[i : i + 1])
        return roots

    def _plan_row(self, request: DraftRequest, count: int, copies: list[BlockCopy], num_logits: int) -> RowPlan | None:
        state = self._kv_states[request.sequence_id]
        start, begin = state.length, state.begin + state.length
        fits = begin + count <= self._max_positions
        reserved = self._kv.reserve(request.sequence_id, start, start + count) if fits else None
        if reserved is None:
            self._drop(request.sequence_id)
            return None
        copies += reserved
        next_tokens = tuple(request.token_ids[begin + 1 : begin + count + 1])
        return RowPlan(request.sequence_id, start, next_tokens, self._kv.block_tables(request.sequence_id), num_logits)

    def _drop(self, sequence_id: int) -> None:
        if self._kv_states.pop(sequence_id, None) is not None:
            self._kv.close(sequence_id)

    def _grow(self, expansions: Sequence[_Expansion], logits: Sequence[Tensor]) -> None:
        """Add the candidates after each frontier node. ``logits`` [frontier nodes, D] of each expansion."""
        if not expansions:
            return
        counts = [len(expansion.tree.frontier) for expansion in expansions]
        repeated = [expansion for expansion, count in zip(expansions, counts, strict=True) for _ in range(count)]
        requests, offsets = [e.request for e in repeated], [e.tree.frontier_depth for e in repeated]
        tokens_RK, probs_RK = top_candidates(torch.cat(list(logits)), requests, offsets, self._runner.token_ids, RANKS)
        for expansion, tokens, probs in zip(expansions, torch.split(tokens_RK, counts), torch.split(probs_RK, counts), strict=True):
            expansion.grow(tokens.tolist(), probs.tolist())

    def _advance(self, expansions: list[_Expansion]) -> list[_Expansion] | None:
        """Grow each tree by one depth. Return the expansions for which there were positions and KV blocks."""
        begin = time.perf_counter()
        rows: list[RowPlan] = []
        copies: list[BlockCopy] = []
        hidden: list[Tensor] = []
        advanced: list[_Expansion] = []
        for expansion in expansions:
            state, tree, sequence_id = expansion.kv_state, expansion.tree, expansion.request.sequence_id
            start = state.length - 1
            fits = state.begin + state.length + tree.frontier_depth <= self._max_positions
            end = start + 1 + len(expansion.computed) + len(tree.frontier)
            reserved = self._kv.reserve(sequence_id, start, end) if fits else None
            if reserved is None:
                continue
            copies += reserved
            num_logits = len(tree.frontier)
            tokens, parents, states = expansion.next_row()
            rows.append(RowPlan(sequence_id, start, tokens, self._kv.block_tables(sequence_id), num_logits, parents))
            hidden += states
            advanced.append(expansion)
        if not rows:
            return None
        hidden_TE, logits_RD = self._runner.run(rows, copies, torch.cat(hidden))
        for expansion, own_TE in zip(advanced, torch.split(hidden_TE, [len(row.token_ids) for row in rows]), strict=True):
            frontier = expansion.tree.frontier
            last_E = own_TE[len(own_TE) - len(frontier) :].clone()
            expansion.hidden |= {node: last_E[i : i + 1] for i, node in enumerate(frontier)}
        self._grow(advanced, torch.split(logits_RD, [row.num_logits for row in rows]))
        self._expansion.draft_costs.record(len(advanced), time.perf_counter() - begin)
        return advanced


def _row_index(rows: Sequence[int]) -> slice | Tensor:
    """Return an index of these ascending rows: a slice where they are adjacent, which saves a copy."""
    first, last = rows[0], rows[-1]
    return slice(first, last + 1) if last - first == len(rows) - 1 else torch.tensor(rows, dtype=torch.int64, device="cpu")
