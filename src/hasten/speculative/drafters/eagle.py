"""Guesses by an EAGLE-3 head (Li et al., 2025, arXiv 2503.01840): one layer that reads the model's own hidden states.

The head keeps keys and values of its own, one slot per position whose states the model has computed in front of it. What the prefix
cache saved the model from computing the head never saw: there its text begins later, and it guesses a little worse. While nobody
asks for guesses the states wait, and are read all at once when somebody does; where too many wait the older ones are forgotten.

Shape suffixes: T tokens of all lines · R lines · E hidden size · K candidates.
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
from hasten.speculative.candidates import candidates
from hasten.speculative.draft_tree import RANKS, DraftTree
from hasten.speculative.drafters.base import ComputedSpan, DraftRequest, ModelDrafter, TargetOutput
from hasten.speculative.growth import Growth
from hasten.speculative.step_costs import StepCosts

LONG = 32  # tokens: reading fewer says more about guessing than about reading
TOGETHER = 2  # times as many states may wait of all lines as of one
WIDTH = 2  # nodes of a depth that the tree goes on from, at most


class EagleRunner(Protocol):
    """The head over its own pool."""

    def fuse(self, states_TF: Tensor) -> Tensor:
        """Of the tapped layers, side by side in their order [T, A·E] -> [T, E]."""
        ...

    def run(self, rows: Sequence[RowPlan], copies: Sequence[BlockCopy], hidden_TE: Tensor) -> tuple[Tensor, Tensor]:
        """One place on: states [T, E], and the logits after each row's last ``num_logits`` tokens, of the head's vocabulary [R, D].

        ``rows`` hold the token after each state. Makes the copies, then writes keys and values. Valid until the next call.
        """
        ...

    def token_ids(self, columns: Tensor) -> Tensor:
        """The model's tokens."""
        ...


@dataclass(slots=True)
class _DraftKvState:
    """Positions ``[begin, begin + length)`` of a line are in the slots from 0 on, and the states of those after them wait."""

    begin: int
    length: int = 0
    waiting: tuple[Tensor, ...] = ()  # states side by side [T, A·E]
    num_waiting: int = 0  # tokens

    @property
    def end(self) -> int:
        return self.begin + self.length + self.num_waiting

    def add(self, states_TF: Tensor) -> None:
        self.waiting, self.num_waiting = (*self.waiting, states_TF), self.num_waiting + len(states_TF)

    def take(self, count: int) -> Tensor:
        """The first ``count`` of those that wait; they are on their way into slots."""
        states_TF = torch.cat(self.waiting)
        self.waiting, self.num_waiting = ((states_TF[count:],) if count < len(states_TF) else ()), len(states_TF) - count
        self.length += count
        return states_TF[:count]


class _Place(NamedTuple):
    """The end of what the head has read of a line."""

    token_id: int  # after the state
    hidden_1E: Tensor  # the fused state that it read
    state_1E: Tensor  # what it made of that
    logits_1V: Tensor  # of the token after it


@dataclass(slots=True)
class _Guess:
    """A tree that grows by one place a time, at its likeliest nodes (EAGLE-2, Li et al., 2024, arXiv 2406.16858).

    The head goes over all of the tree anew for each place, behind the line's last token: it is a matter of few rows, and a row sees
    the others of its own step only.
    """

    line: DraftRequest
    trail: _DraftKvState
    place: _Place
    tree: DraftTree
    read: list[int] = field(default_factory=list)  # nodes that the head has gone over, parents first
    states: dict[int, Tensor] = field(default_factory=dict)  # of nodes that were read [1, E]

    def __post_init__(self) -> None:
        self.states[-1] = self.place.state_1E

    def grow(self, tokens: Sequence[Sequence[int]], chances: Sequence[Sequence[float]]) -> None:
        """What may follow each tip, the likeliest first. Tips are the likeliest of the new nodes."""
        new = [
            node
            for tip, mine, likely in zip(self.tree.tips, tokens, chances, strict=True)
            for node in self.tree.add(tip, zip(mine, likely, strict=True), self.line.request.params.greedy)
        ]
        self.tree.tips = sorted(new, key=lambda node: -self.tree.nodes[node].chance)[:WIDTH]

    def row(self) -> tuple[tuple[int, ...], tuple[int, ...], list[Tensor]]:
        """The tokens that the head reads, how those after the first branch, and the state beside each. Takes the tips as read."""
        self.read += self.tree.tips
        places = {-1: -1} | {node: i for i, node in enumerate(self.read)}
        nodes = [self.tree.nodes[node] for node in self.read]
        tokens = (self.place.token_id, *(node.token_id for node in nodes))
        return tokens, tuple(places[node.parent] for node in nodes), [self.place.hidden_1E, *(self.states[n.parent] for n in nodes)]


class Eagle(ModelDrafter):
    def __init__(
        self,
        runner: EagleRunner,
        kv: KvCacheManager,
        *,
        costs: StepCosts,
        aux_layer_indices: tuple[int, ...],
        num_tokens: int = 8,
        max_depth: int = 5,
        max_positions: int,
        max_waiting: int = 4096,
    ) -> None:
        self._runner, self._kv, self._aux_layer_indices, self._max_positions = runner, kv, aux_layer_indices, max_positions
        self._max_waiting = max_waiting
        self.num_tokens, self._max_depth = num_tokens, max_depth
        self._trails: dict[int, _DraftKvState] = {}
        self._growth = Growth(costs)

    @property
    def aux_layer_indices(self) -> tuple[int, ...]:
        return self._aux_layer_indices

    @property
    def lengths(self) -> tuple[int, ...]:
        return (1, 2, 3, 4, 6, 8, 12)

    def cost(self, num_lines: int, num_tokens: int) -> float | None:
        depth = min(num_tokens, self._max_depth)
        return self._growth.pace.cost(num_lines, depth - 1, sure=1)  # the first place comes of what is read in any case

    def backlog(self, lines: Sequence[DraftRequest]) -> float:
        return self._growth.pace.reading(self._num_unread(lines))

    def _num_unread(self, lines: Sequence[DraftRequest]) -> int:
        trails = [self._trails[line.sequence_id] for line in lines if line.sequence_id in self._trails]
        return sum(trail.num_waiting - 1 for trail in trails if trail.num_waiting)

    def shape(self, num_tokens: int) -> Draft:
        return Draft.chain(range(num_tokens))

    @torch.inference_mode()
    def guess(self, lines: Sequence[DraftRequest]) -> list[Draft]:
        begin = time.perf_counter()
        ready = [line for line in lines if line.room and self._ready(line)]
        num_unread = self._num_unread(ready)
        last = self._read([(line, self._trails[line.sequence_id].num_waiting) for line in ready])
        if num_unread > LONG:
            self._growth.pace.note_reading(num_unread, time.perf_counter() - begin)
        self._growth.judge(lines)
        guesses = [
            _Guess(line, self._trails[line.sequence_id], last[line.sequence_id], self._growth.plant(line))
            for line in lines
            if line.sequence_id in last
        ]
        self._choose(guesses, [guess.place.logits_1V for guess in guesses])
        first = time.perf_counter() - begin
        made = self._growth.grow(guesses, self.num_tokens, min(self.num_tokens, self._max_depth) - 1, self._advance)
        if guesses and num_unread <= LONG:
            # Where no other call was made. Those take less: before this one, the step had displaced the head's weights.
            self._growth.pace.assume(len(guesses), first)
        return self._growth.drafts(lines, self.num_tokens, made)

    def _ready(self, line: DraftRequest) -> bool:
        """Whether all states but that of the line's last token are known."""
        trail = self._trails.get(line.sequence_id)
        return trail is not None and trail.num_waiting > 0 and trail.end == len(line.token_ids) - 1

    @torch.inference_mode()
    def watch(self, lines: Sequence[DraftRequest], seen: TargetOutput) -> None:
        """Take in the states of the last step: let go of lines that are gone, and let new ones share what their parents have."""
        for sequence_id in [known for known in self._trails if not seen.alive(known)]:
            self._drop(sequence_id)
        parents = {}
        for computed in seen.computed:
            parents[computed.line.request.request_id] = computed.line
            self._keep(computed, seen.aux_hidden_states)
        self._bound()
        born = [line for line in lines if line.sequence_id not in self._trails and line.request.request_id in parents]
        forked = {line.request.request_id: parents[line.request.request_id] for line in born}
        # A parent and its children have different tokens after the last state; all before is theirs together.
        ready = [line for line in forked.values() if self._ready(line)]
        self._read([(line, self._trails[line.sequence_id].num_waiting - 1) for line in ready], num_logits=0)
        for line in born:
            parent = forked[line.request.request_id]
            if self._ready(parent):
                self._kv.fork(parent.sequence_id, line.sequence_id)
                self._trails[line.sequence_id] = replace(self._trails[parent.sequence_id])

    def _keep(self, computed: ComputedSpan, aux_hidden_states: Mapping[int, Tensor]) -> None:
        sequence_id = computed.line.sequence_id
        trail = self._trails.get(sequence_id)
        if trail is None or trail.end != computed.start:  # a new line, or one that was computed again
            self._drop(sequence_id)
            trail = self._begin(sequence_id, computed.start)
        rows = _rows(computed.tokens)
        trail.add(torch.cat([aux_hidden_states[layer][rows] for layer in self._aux_layer_indices], dim=1))

    def _bound(self) -> None:
        """Forget the oldest of what waits, where too much does."""
        for sequence_id, trail in list(self._trails.items()):
            if trail.num_waiting > self._max_waiting:
                self._forget(sequence_id)
        num_waiting = sum(trail.num_waiting for trail in self._trails.values())
        while num_waiting > TOGETHER * self._max_waiting:
            longest = max(self._trails, key=lambda known: self._trails[known].num_waiting)
            num_waiting -= self._trails[longest].num_waiting
            self._forget(longest)
            num_waiting += self._trails[longest].num_waiting

    def _forget(self, sequence_id: int) -> None:
        """The older half of what may wait, and all before it: the text begins later for the head."""
        trail = self._trails[sequence_id]
        end, kept = trail.end, max(1, min(trail.num_waiting, self._max_waiting) // 2)
        states_TF = torch.cat(trail.waiting)[-kept:].clone()
        self._drop(sequence_id)
        self._begin(sequence_id, end - kept).add(states_TF)

    def _begin(self, sequence_id: int, position: int) -> _DraftKvState:
        self._kv.open(sequence_id, "", ())
        trail = self._trails[sequence_id] = _DraftKvState(position)
        return trail

    def _read(self, lines: Sequence[tuple[DraftRequest, int]], num_logits: int = 1) -> dict[int, _Place]:
        """Bring so many of each line's states into its slots. Returns what the head makes of the last one of each line."""
        rows: list[RowPlan] = []
        copies: list[BlockCopy] = []
        states: list[Tensor] = []
        for line, count in lines:
            if count > 0 and (row := self._row(line, count, copies, num_logits)) is not None:
                rows.append(row)
                states.append(self._trails[line.sequence_id].take(count))
        if not rows:
            return {}
        hidden_TE = self._runner.fuse(torch.cat(states))
        out_TE, logits_RV = self._runner.run(rows, copies, hidden_TE)
        last: dict[int, _Place] = {}
        end = 0
        for i, row in enumerate(rows):
            end += len(row.token_ids)
            if num_logits:
                state_1E = out_TE[end - 1 : end].clone()  # the runner's memory, which its next call overwrites
                last[row.sequence_id] = _Place(row.token_ids[-1], hidden_TE[end - 1 : end], state_1E, logits_RV[i : i + 1])
        return last

    def _row(self, line: DraftRequest, count: int, copies: list[BlockCopy], num_logits: int) -> RowPlan | None:
        trail = self._trails[line.sequence_id]
        start, begin = trail.length, trail.begin + trail.length
        made = None if begin + count > self._max_positions else self._kv.reserve(line.sequence_id, start, start + count)
        if made is None:
            self._drop(line.sequence_id)
            return None
        copies += made
        following = tuple(line.token_ids[begin + 1 : begin + count + 1])
        return RowPlan(line.sequence_id, start, following, self._kv.blocks(line.sequence_id), num_logits)

    def _drop(self, sequence_id: int) -> None:
        if self._trails.pop(sequence_id, None) is not None:
            self._kv.close(sequence_id)

    def _choose(self, guesses: Sequence[_Guess], logits: Sequence[Tensor]) -> None:
        """What may follow the tips of every tree, by what the head says there. ``logits`` [tips, D] of each."""
        if not guesses:
            return
        counts = [len(guess.tree.tips) for guess in guesses]
        lines = [guess.line for guess, count in zip(guesses, counts, strict=True) for _ in range(count)]
        ahead = [guess.tree.height for guess, count in zip(guesses, counts, strict=True) for _ in range(count)]
        tokens_RK, chances_RK = candidates(torch.cat(list(logits)), lines, ahead, self._runner.token_ids, RANKS)
        for guess, tokens, chances in zip(guesses, torch.split(tokens_RK, counts), torch.split(chances_RK, counts), strict=True):
            guess.grow(tokens.tolist(), chances.tolist())

    def _advance(self, guesses: list[_Guess]) -> list[_Guess] | None:
        """One place on in each tree; those without room for it stop."""
        begin = time.perf_counter()
        rows: list[RowPlan] = []
        copies: list[BlockCopy] = []
        hidden: list[Tensor] = []
        going: list[_Guess] = []
        for guess in guesses:
            sequence_id, start = guess.line.sequence_id, guess.trail.length - 1
            full = guess.trail.begin + guess.trail.length + guess.tree.height > self._max_positions
            end = start + 1 + len(guess.read) + len(guess.tree.tips)
            made = None if full else self._kv.reserve(sequence_id, start, end)
            if made is None:
                continue
            copies += made
            num_tips = len(guess.tree.tips)
            tokens, tree, states = guess.row()
            rows.append(RowPlan(sequence_id, start, tokens, self._kv.blocks(sequence_id), num_tips, tree))
            hidden += states
            going.append(guess)
        if not rows:
            return None
        out_TE, logits_RV = self._runner.run(rows, copies, torch.cat(hidden))
        for guess, state_TE in zip(going, torch.split(out_TE, [len(row.token_ids) for row in rows]), strict=True):
            last_E = state_TE[len(state_TE) - len(guess.tree.tips) :].clone()
            guess.states |= {tip: last_E[i : i + 1] for i, tip in enumerate(guess.tree.tips)}
        self._choose(going, torch.split(logits_RV, [row.num_logits for row in rows]))
        self._growth.pace.note(len(going), time.perf_counter() - begin)
        return going


def _rows(places: Sequence[int]) -> slice | Tensor:
    """An index of these rows, which rise. Mostly they lie one behind the other, where a slice saves a copy."""
    first, last = places[0], places[-1]
    return slice(first, last + 1) if last - first == len(places) - 1 else torch.tensor(places)
