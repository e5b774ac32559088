"""Guesses by an EAGLE-3 head (Li et al., 2025, arXiv 2503.01840): one layer that reads the model's own hidden states.

The head keeps keys and values of its own, one slot per position whose states the model has computed in front of it. What the prefix
cache saved the model from computing the head never saw: there its text begins later, and it guesses a little worse. Guesses are a
chain of the head's first choices with its other choices at every place hung beside it, the likeliest first.

Shape suffixes: T tokens of all lines · R lines · E hidden size · K candidates.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from hasten.core.draft import NO_DRAFT, Draft
from hasten.core.plan import BlockCopy, RowPlan
from hasten.decoding.candidates import candidates
from hasten.decoding.drafters.base import Computed, Line, Seen
from hasten.decoding.pace import Pace
from hasten.kv.space import KvSpace

RANKS = 3  # choices of a place that are guessed


class EagleRunner(Protocol):
    """The head over its own pool."""

    def fuse(self, states: Sequence[Tensor]) -> Tensor:
        """Of the tapped layers, in their order, [T, E] each -> [T, E]."""
        ...

    def run(self, rows: Sequence[RowPlan], copies: Sequence[BlockCopy], hidden_TE: Tensor) -> Tensor:
        """One place on. ``rows`` hold the token after each state. Makes the copies, then writes keys and values of the rows. [T,
        E]
        """
        ...

    def logits(self, hidden_RE: Tensor) -> Tensor:
        """Over the head's vocabulary, float32."""
        ...

    def token_ids(self, columns: Tensor) -> Tensor:
        """The model's tokens."""
        ...


@dataclass(slots=True)
class _Trail:
    """Positions ``[begin, begin + length)`` of a line, whose true states are in the slots from 0 on."""

    begin: int
    length: int = 0


@dataclass(slots=True)
class _Guess:
    line: Line
    trail: _Trail
    nodes: list[tuple[float, int, int]] = field(default_factory=list)  # (chance, token, parent as an index of this list)
    tip: int = -1  # the node that the chain goes on from
    chance: float = 1.0  # of the tip
    num_ahead: int = 0  # tokens of the chain

    def grow(self, tokens: Sequence[int], chances: Sequence[float]) -> None:
        parent = self.tip
        for rank, (token, chance) in enumerate(zip(tokens, chances, strict=True)):
            self.nodes.append((self.chance * chance, token, parent))
            if rank == 0:
                self.tip = len(self.nodes) - 1
        self.chance, self.num_ahead = self.nodes[self.tip][0], self.num_ahead + 1

    def draft(self, num_tokens: int) -> Draft:
        """The likeliest nodes; a chain's tip may be less likely than its siblings, but never likelier than its parent."""
        order = sorted(range(len(self.nodes)), key=lambda i: (-self.nodes[i][0], i))
        place = {-1: -1}
        for node in order[:num_tokens]:
            place[node] = len(place) - 1
        kept = [self.nodes[node] for node in order[:num_tokens]]
        return Draft(tuple(token for _, token, _ in kept), tuple(place[parent] for _, _, parent in kept))


class Eagle:
    def __init__(
        self,
        runner: EagleRunner,
        kv: KvSpace,
        *,
        taps: tuple[int, ...],
        num_tokens: int = 6,
        max_depth: int = 5,
        max_positions: int,
    ) -> None:
        self._runner, self._kv, self._taps, self._max_positions = runner, kv, taps, max_positions
        self.num_tokens, self._max_depth = num_tokens, max_depth
        self._trails: dict[int, _Trail] = {}
        self._pace = Pace()

    @property
    def taps(self) -> tuple[int, ...]:
        return self._taps

    @property
    def lengths(self) -> tuple[int, ...]:
        return (1, 2, 3, 4, 6, 8, 12)

    def cost(self, num_lines: int, num_tokens: int) -> float | None:
        seconds = self._pace.seconds(num_lines)
        return None if seconds is None else seconds * min(num_tokens, self._max_depth)

    def shape(self, num_tokens: int) -> Draft:
        return Draft.chain(range(num_tokens))

    def skip(self, lines: Sequence[Line], seen: Seen) -> None:
        """Reads what the model has seen, for later."""
        self._forget(lines, seen)
        self._read(self._with_born(lines, seen), seen.taps)

    @torch.inference_mode()
    def propose(self, lines: Sequence[Line], seen: Seen) -> list[Draft]:
        self._forget(lines, seen)
        wanted = {line.sequence_id: line for line in lines}
        active, state_RE = self._begin(wanted, self._read(self._with_born(lines, seen), seen.taps))
        guesses = {guess.line.sequence_id: guess for guess in active}
        for depth in range(min(self.num_tokens, self._max_depth)):
            if not active:
                break
            begin = time.perf_counter()
            if depth:
                active, state_RE = self._advance(active, state_RE)
            self._choose(active, state_RE)
            if depth:
                self._pace.note(len(active), time.perf_counter() - begin)
        return [guesses[i].draft(self.num_tokens) if i in guesses else NO_DRAFT for i in wanted]

    def _with_born(self, lines: Sequence[Line], seen: Seen) -> list[Computed]:
        """What was computed, and for lines that forked off in this step the last token of what their parent computed.

        A parent and its children have different tokens after that one; all before is theirs together.
        """
        parents = {computed.line.request.request_id: computed for computed in seen.computed}
        known = {computed.line.sequence_id for computed in seen.computed} | set(self._trails)
        born = [line for line in lines if line.sequence_id not in known and line.request.request_id in parents]
        forked = {line.request.request_id: parents[line.request.request_id] for line in born}
        self._read([c._replace(tokens=c.tokens[:-1]) for c in forked.values() if len(c.tokens) > 1], seen.taps)
        found = [_last(c) if c.line.request.request_id in forked else c for c in seen.computed]
        for line in born:
            parent = forked[line.request.request_id].line.sequence_id
            if parent in self._trails:
                self._kv.fork(parent, line.sequence_id)
                self._trails[line.sequence_id] = replace(self._trails[parent])
            found.append(_last(forked[line.request.request_id])._replace(line=line))
        return found

    def _read(self, computed_lines: Sequence[Computed], taps: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Take in states of the last step. Returns what the head makes of the last one of each line [E]."""
        rows: list[RowPlan] = []
        copies: list[BlockCopy] = []
        places: list[int] = []
        for computed in computed_lines:
            row = self._row(computed, copies)
            if row is not None:
                rows.append(row)
                places += computed.tokens
        if not rows:
            return {}
        index_T = torch.tensor(places)
        out_TE = self._runner.run(rows, copies, self._runner.fuse([taps[layer][index_T] for layer in self._taps]))
        last: dict[int, Tensor] = {}
        end = 0
        for row in rows:
            end += len(row.token_ids)
            last[row.sequence_id] = out_TE[end - 1]
        return last

    def _row(self, computed: Computed, copies: list[BlockCopy]) -> RowPlan | None:
        line, count = computed.line, len(computed.tokens)
        trail = self._trails.get(line.sequence_id)
        if trail is None or trail.begin + trail.length != computed.start:  # a new line, or one that was computed again
            self._drop(line.sequence_id)
            self._kv.open(line.sequence_id, "", ())
            trail = self._trails[line.sequence_id] = _Trail(computed.start)
        start = trail.length
        full = trail.begin + start + count > self._max_positions
        made = None if full else self._kv.reserve(line.sequence_id, start, start + count)
        if made is None:
            self._drop(line.sequence_id)
            return None
        copies += made
        trail.length += count
        following = tuple(line.token_ids[computed.start + 1 : computed.start + count + 1])
        return RowPlan(line.sequence_id, start, following, self._kv.blocks(line.sequence_id), 1)

    def _forget(self, lines: Sequence[Line], seen: Seen) -> None:
        alive = {line.sequence_id for line in lines} | {computed.line.sequence_id for computed in seen.computed}
        for sequence_id in [known for known in self._trails if known not in alive]:
            self._drop(sequence_id)

    def _drop(self, sequence_id: int) -> None:
        if self._trails.pop(sequence_id, None) is not None:
            self._kv.close(sequence_id)

    def _begin(self, wanted: dict[int, Line], last: dict[int, Tensor]) -> tuple[list[_Guess], Tensor]:
        ready = [sequence_id for sequence_id in wanted if sequence_id in last]
        guesses = [_Guess(wanted[sequence_id], self._trails[sequence_id]) for sequence_id in ready]
        return guesses, torch.stack([last[sequence_id] for sequence_id in ready]) if ready else torch.empty(0)

    def _choose(self, guesses: Sequence[_Guess], state_RE: Tensor) -> None:
        logits_RV = self._runner.logits(state_RE)
        ahead = [guess.num_ahead for guess in guesses]
        tokens, chances = candidates(logits_RV, [guess.line for guess in guesses], ahead, self._runner.token_ids, RANKS)
        for guess, mine, likely in zip(guesses, tokens.tolist(), chances.tolist(), strict=True):
            guess.grow(mine, likely)

    def _advance(self, guesses: list[_Guess], state_RE: Tensor) -> tuple[list[_Guess], Tensor]:
        """One place on along each chain; those without room for it stop."""
        rows: list[RowPlan] = []
        copies: list[BlockCopy] = []
        going: list[int] = []
        for i, guess in enumerate(guesses):
            sequence_id, start = guess.line.sequence_id, guess.trail.length + guess.num_ahead - 1
            full = guess.trail.begin + start + 1 > self._max_positions
            made = None if full else self._kv.reserve(sequence_id, start, start + 1)
            if made is None:
                continue
            copies += made
            rows.append(RowPlan(sequence_id, start, (guess.nodes[guess.tip][1],), self._kv.blocks(sequence_id), 1))
            going.append(i)
        if not rows:
            return [], state_RE
        return [guesses[i] for i in going], self._runner.run(rows, copies, state_RE[torch.tensor(going)])


def _last(computed: Computed) -> Computed:
    """Of its tokens the last one alone."""
    count = len(computed.tokens)
    return Computed(computed.line, computed.start + count - 1, computed.tokens[count - 1 :])
