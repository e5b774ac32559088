"""Guesses by an EAGLE-3 head (Li et al., 2025, arXiv 2503.01840): one layer that reads the model's own hidden states.

The head keeps keys and values of its own, one slot per position whose states the model has computed in front of it. What the prefix
cache saved the model from computing the head never saw: there its text begins later, and it guesses a little worse. While nobody
asks for guesses the states wait, and are read all at once when somebody does; where too many wait they are forgotten. Guesses are a
chain of the head's first choices with its other choices at every place hung beside it, the likeliest first.

Shape suffixes: T tokens of all lines · R lines · E hidden size · K candidates.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hasten.core.draft import NO_DRAFT, Draft
from hasten.core.plan import BlockCopy, RowPlan
from hasten.decoding.candidates import candidates
from hasten.decoding.drafters.base import Computed, Line, Seen
from hasten.decoding.pace import Pace
from hasten.kv.space import KvSpace

LONG = 32  # tokens: reading fewer says more about guessing than about reading
RANKS = 3  # choices of a place that are guessed
DOUBT = 0.15  # a chain that is right less often than this, by what the head says, is not continued


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
class _Trail:
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
    """What the head makes of a place of a chain."""

    state_1E: Tensor
    logits_1V: Tensor  # of the token after it


@dataclass(slots=True)
class _Guess:
    line: Line
    trail: _Trail
    state_1E: Tensor = field(default_factory=lambda: torch.empty(0))  # of the place before the tip
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
        max_waiting: int = 4096,
    ) -> None:
        self._runner, self._kv, self._taps, self._max_positions = runner, kv, taps, max_positions
        self._max_waiting = max_waiting
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

    def backlog(self, lines: Sequence[Line]) -> float:
        return self._pace.reading(self._num_unread(lines))

    def _num_unread(self, lines: Sequence[Line]) -> int:
        trails = [self._trails[line.sequence_id] for line in lines if line.sequence_id in self._trails]
        return sum(trail.num_waiting - 1 for trail in trails if trail.num_waiting)

    def shape(self, num_tokens: int) -> Draft:
        return Draft.chain(range(num_tokens))

    @torch.inference_mode()
    def skip(self, lines: Sequence[Line], seen: Seen) -> None:
        """Keeps what the model has seen, for later."""
        self._watch(lines, seen)

    @torch.inference_mode()
    def propose(self, lines: Sequence[Line], seen: Seen) -> list[Draft]:
        self._watch(lines, seen)
        begin, num_unread = time.perf_counter(), self._num_unread(lines)
        last = self._read([(line, self._trails[line.sequence_id].num_waiting) for line in lines if self._ready(line)])
        if num_unread > LONG:
            self._pace.note_reading(num_unread, time.perf_counter() - begin)
        active = [_Guess(line, self._trails[line.sequence_id]) for line in lines if line.sequence_id in last]
        guesses = {guess.line.sequence_id: guess for guess in active}
        self._choose(active, [last[guess.line.sequence_id] for guess in active])
        for _ in range(1, min(self.num_tokens, self._max_depth)):
            active = [guess for guess in active if guess.chance >= DOUBT]
            if not active:
                break
            begin = time.perf_counter()
            active = self._advance(active)
            self._pace.note(len(active), time.perf_counter() - begin)
        drafts = {sequence_id: guess.draft(self.num_tokens) for sequence_id, guess in guesses.items()}
        return [drafts.get(line.sequence_id, NO_DRAFT) for line in lines]

    def _ready(self, line: Line) -> bool:
        """Whether all states but that of the line's last token are known."""
        trail = self._trails.get(line.sequence_id)
        return trail is not None and trail.num_waiting > 0 and trail.end == len(line.token_ids) - 1

    def _watch(self, lines: Sequence[Line], seen: Seen) -> None:
        """Take in the states of the last step: let go of lines that are gone, and let new ones share what their parents have."""
        alive = {line.sequence_id for line in lines} | {computed.line.sequence_id for computed in seen.computed}
        for sequence_id in [known for known in self._trails if known not in alive]:
            self._drop(sequence_id)
        parents = {}
        for computed in seen.computed:
            parents[computed.line.request.request_id] = computed.line
            self._keep(computed, seen.taps)
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

    def _keep(self, computed: Computed, taps: Mapping[int, Tensor]) -> None:
        sequence_id = computed.line.sequence_id
        trail = self._trails.get(sequence_id)
        if trail is None or trail.end != computed.start:  # a new line, or one that was computed again
            self._drop(sequence_id)
            self._kv.open(sequence_id, "", ())
            trail = self._trails[sequence_id] = _Trail(computed.start)
        index_T = torch.tensor(computed.tokens)
        trail.add(torch.cat([taps[layer][index_T] for layer in self._taps], dim=1))
        if trail.num_waiting > self._max_waiting:
            self._drop(sequence_id)

    def _read(self, lines: Sequence[tuple[Line, int]], num_logits: int = 1) -> dict[int, _Place]:
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
        out_TE, logits_RV = self._runner.run(rows, copies, self._runner.fuse(torch.cat(states)))
        last: dict[int, _Place] = {}
        end = 0
        for i, row in enumerate(rows):
            end += len(row.token_ids)
            if num_logits:
                last[row.sequence_id] = _Place(out_TE[end - 1 : end], logits_RV[i : i + 1])
        return last

    def _row(self, line: Line, count: int, copies: list[BlockCopy], num_logits: int) -> RowPlan | None:
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

    def _choose(self, guesses: Sequence[_Guess], places: Sequence[_Place]) -> None:
        """The next token of every chain, by what the head says at its end."""
        if not guesses:
            return
        logits_RV = torch.cat([place.logits_1V for place in places])
        ahead = [guess.num_ahead for guess in guesses]
        tokens, chances = candidates(logits_RV, [guess.line for guess in guesses], ahead, self._runner.token_ids, RANKS)
        for guess, place, mine, likely in zip(guesses, places, tokens.tolist(), chances.tolist(), strict=True):
            guess.grow(mine, likely)
            guess.state_1E = place.state_1E

    def _advance(self, guesses: list[_Guess]) -> list[_Guess]:
        """One place on along each chain, and the token after it; those without room for it stop."""
        rows: list[RowPlan] = []
        copies: list[BlockCopy] = []
        going: list[_Guess] = []
        for guess in guesses:
            sequence_id, start = guess.line.sequence_id, guess.trail.length + guess.num_ahead - 1
            full = guess.trail.begin + start + 1 > self._max_positions
            made = None if full else self._kv.reserve(sequence_id, start, start + 1)
            if made is None:
                continue
            copies += made
            rows.append(RowPlan(sequence_id, start, (guess.nodes[guess.tip][1],), self._kv.blocks(sequence_id), 1))
            going.append(guess)
        if rows:
            state_RE, logits_RV = self._runner.run(rows, copies, torch.cat([guess.state_1E for guess in going]))
            self._choose(going, [_Place(state_RE[i : i + 1], logits_RV[i : i + 1]) for i in range(len(going))])
        return going
