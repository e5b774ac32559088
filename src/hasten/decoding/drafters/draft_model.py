"""Guesses with a smaller model of the same vocabulary (Leviathan et al., 2022, arXiv 2211.17192; Chen et al., 2023, 2302.01318).

It draws with the noise of the target's own positions, so wherever both models agree well enough they draw the same token, at any
temperature (arXiv 2408.07978). Its keys and values lie in blocks of their own, which follow the lines: what a line has taken is
computed, what it has rejected is written over. It knows no scheduler: where blocks or a step's tokens are short, it guesses less.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hasten.core.draft import Draft
from hasten.core.extended import Extended
from hasten.core.plan import BlockCopy, RowPlan, Runner, StepPlan
from hasten.decoding.drafters.base import Line, PacedDrafter, Seen
from hasten.decoding.few_words import FewWords
from hasten.decoding.pace import Pace
from hasten.kv.space import KvSpace
from hasten.sampling.row import SamplingRow
from hasten.sampling.sampler import Sampler

DOUBT = 0.25  # a greedy chain that is right less often than this, by what the draft model says, is not continued
LONG = 32  # tokens: reading fewer says more about guessing than about reading


@dataclass(slots=True)
class Trail:
    """The tokens of one line whose keys and values the draft model has computed."""

    token_ids: list[int] = field(default_factory=list)
    num_verified: int = 0  # of these: the ones that the line has taken

    def follow(self, token_ids: Sequence[int]) -> None:
        """Forget the guesses that the line went another way than."""
        kept = self.num_verified
        while kept < min(len(self.token_ids), len(token_ids)) and self.token_ids[kept] == token_ids[kept]:
            kept += 1
        del self.token_ids[kept:]
        self.num_verified = kept


@dataclass(slots=True)
class _Guess:
    """A line and what is guessed of it so far."""

    line: Line
    trail: Trail
    token_ids: list[int] = field(default_factory=list)
    chance: float = 1.0  # that all of it is right, by what the draft model says
    proposals: list[Tensor] = field(default_factory=list)  # what they were drawn from, where the line's rule asks

    @property
    def judged(self) -> bool:
        """Whether the line's rule weighs a guess by the distribution that it was drawn from."""
        params = self.line.request.params
        return params.acceptance == "rejection" and not params.exact

    @property
    def num_tokens(self) -> int:
        return len(self.line.token_ids) + len(self.token_ids)

    def missing(self, count: int) -> list[int]:
        """The first ``count`` tokens that are not computed yet."""
        start, length = len(self.trail.token_ids), len(self.line.token_ids)
        if start >= length:
            return self.token_ids[start - length :][:count]
        return [*self.line.token_ids[start : start + count], *self.token_ids][:count]

    def view(self) -> SamplingRow:
        request = self.line.request
        tokens = Extended(self.line.token_ids, self.token_ids)
        # Where it is to be judged, a guess needs noise of its own: that of the position is what the verdict is drawn with.
        index = -2 - self.line.answer_index if self.judged else self.line.answer_index
        return SamplingRow(request.params, tokens, len(request.prompt_token_ids), request.eos_token_ids, index)

    def draft(self) -> Draft:
        return Draft.chain(self.token_ids, tuple(self.proposals) if self.judged else None)


class DraftModel(PacedDrafter):
    def __init__(
        self,
        runner: Runner,
        kv: KvSpace,
        sampler: Sampler,
        *,
        num_tokens: int = 4,
        max_step: int,
        max_positions: int,
        words: FewWords | None = None,
    ) -> None:
        """``max_step``: the most tokens that one step of ``runner`` takes. Nothing past ``max_positions`` is computed.

        ``words``: the tokens that the logits of ``runner`` are of, where these are not all.
        """
        self._runner, self._kv, self._sampler, self._words = runner, kv, sampler, words
        self.num_tokens, self._max_step, self._max_positions = num_tokens, max_step, max_positions
        self._trails: dict[int, Trail] = {}
        self._pace = Pace()

    @property
    def taps(self) -> tuple[int, ...]:
        return ()

    @property
    def lengths(self) -> tuple[int, ...]:
        return (1, 2, 3, 4, 6, 8)

    def cost(self, num_lines: int, num_tokens: int) -> float | None:
        return self._pace.cost(num_lines, num_tokens)

    def backlog(self, lines: Sequence[Line]) -> float:
        return self._pace.reading(self._num_unread(lines))

    def _num_unread(self, lines: Sequence[Line]) -> int:
        """Tokens beyond the two that every round begins with: the last one, and a guess of its own that was right."""
        read = [len(trail.token_ids) if (trail := self._trails.get(line.sequence_id)) else 0 for line in lines]
        return sum(max(0, len(line.token_ids) - count - 2) for line, count in zip(lines, read, strict=True))

    def shape(self, num_tokens: int) -> Draft:
        return Draft.chain(range(num_tokens))

    def watch(self, lines: Sequence[Line], seen: Seen) -> None:
        alive = {line.sequence_id for line in lines}
        for sequence_id in [known for known in self._trails if known not in alive]:
            self._drop(sequence_id)

    def guess(self, lines: Sequence[Line]) -> list[Draft]:
        num_unread = self._num_unread(lines)
        guesses = [_Guess(line, self._follow(line)) for line in lines]
        active = guesses
        made = 0
        for round_ in range(self.num_tokens):
            begin, num_lines = time.perf_counter(), len(active)
            going = self._advance(active)
            if going is None:
                break
            active = going
            if round_ == 0 and num_unread > LONG:
                self._pace.note_reading(num_unread, time.perf_counter() - begin)
            else:
                self._pace.note(num_lines, time.perf_counter() - begin)
            made += 1
            if not active:
                break
        if lines:
            self._pace.note_round(len(lines), self.num_tokens, made)
        return [guess.draft() for guess in guesses]

    def _drop(self, sequence_id: int) -> None:
        self._kv.close(sequence_id)
        del self._trails[sequence_id]

    def _follow(self, line: Line) -> Trail:
        """The line's trail, as far as it is right."""
        trail = self._trails.get(line.sequence_id)
        if trail is None:
            salt = f"tenant:{line.request.cache_salt}"
            cached = self._kv.open(line.sequence_id, salt, self._kv.hashes(salt, line.token_ids))
            trail = self._trails[line.sequence_id] = Trail(list(line.token_ids[:cached]), cached)
            return trail
        trail.follow(line.token_ids)
        self._kv.commit(line.sequence_id, line.token_ids, trail.num_verified)
        return trail

    def _advance(self, guesses: list[_Guess]) -> list[_Guess] | None:
        """One step of the model. Returns the guesses that may go on; None where there was room for none."""
        rows: list[RowPlan] = []
        copies: list[BlockCopy] = []
        planned: list[_Guess] = []
        budget = self._max_step
        for guess in guesses:
            start, sequence_id = len(guess.trail.token_ids), guess.line.sequence_id
            count = min(guess.num_tokens - start, budget)
            if count == 0 or guess.num_tokens > self._max_positions:
                continue
            made = self._kv.reserve(sequence_id, start, start + count)
            if made is None:
                continue
            whole = start + count == guess.num_tokens
            rows.append(RowPlan(sequence_id, start, tuple(guess.missing(count)), self._kv.blocks(sequence_id), int(whole)))
            copies += made
            planned.append(guess)
            budget -= count
        if not rows:
            return None
        logits_RD = self._runner.run(StepPlan(tuple(rows), tuple(copies))).logits
        for guess, row in zip(planned, rows, strict=True):
            guess.trail.token_ids += row.token_ids
            guess.trail.num_verified = min(len(guess.trail.token_ids), len(guess.line.token_ids))
        complete = [guess for guess, row in zip(planned, rows, strict=True) if row.num_logits]
        logits_RV = logits_RD if self._words is None else self._words.spread(logits_RD)
        views = [guess.view() for guess in complete]
        drawn = self._sampler.tokens(logits_RV, views)
        sure = [guess.line.request.params.greedy for guess in complete]
        chances = _chances(logits_RV, logits_RD.logsumexp(dim=1), drawn) if any(sure) else [1.0] * len(drawn)
        ended = set()
        for place, (guess, token_id) in enumerate(zip(complete, drawn, strict=True)):
            if token_id is None:
                ended.add(id(guess))
                continue
            if guess.judged:
                (proposal_V,) = self._sampler.probabilities(logits_RV[place : place + 1], views[place : place + 1])
                guess.proposals.append(proposal_V)
            guess.token_ids.append(token_id)
            if sure[place]:  # whoever draws with the same noise may agree with an unlikely token
                guess.chance *= chances[place]
        return [guess for guess in planned if id(guess) not in ended and guess.chance >= DOUBT]


def _chances(logits_RV: Tensor, total_R: Tensor, token_ids: Sequence[int | None]) -> list[float]:
    """Of each row's token, by its logits, whose exponentials sum up to that of ``total_R``."""
    index_R = torch.tensor([token or 0 for token in token_ids])
    chances: list[float] = (logits_RV[torch.arange(len(index_R)), index_R] - total_R).exp().tolist()
    return chances
