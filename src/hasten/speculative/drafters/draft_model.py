"""Guesses with a smaller model of the same vocabulary (Leviathan et al., 2022, arXiv 2211.17192; Chen et al., 2023, 2302.01318).

It goes on from its own likeliest token. What else a greedy line may choose in the same place is guessed beside it: that costs a row
of the step that verifies it, and no call.

It draws with the noise of the target's own positions, so wherever both models agree well enough they draw the same token, at any
temperature (arXiv 2408.07978). Its keys and values lie in blocks of their own, which follow the lines: what a line has taken is
computed, what it has rejected is written over. It knows no scheduler: where blocks or a step's tokens are short, it guesses less.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from hasten.core.concat_view import ConcatView
from hasten.core.draft import Draft
from hasten.core.plan import BlockCopy, RowPlan, Runner, StepPlan
from hasten.kv.cache_manager import KvCacheManager
from hasten.sampling.row import SamplingRow
from hasten.sampling.sampler import Sampler
from hasten.sampling.select_rows import select_rows
from hasten.speculative.candidates import candidates
from hasten.speculative.draft_tree import RANKS, DraftTree
from hasten.speculative.draft_vocabulary import DraftVocabulary
from hasten.speculative.drafters.base import DraftRequest, ModelDrafter, TargetOutput
from hasten.speculative.growth import Growth
from hasten.speculative.step_costs import StepCosts

UNKNOWN = 0.9  # is how likely a token is taken to be that was drawn, until some have been judged
LONG = 32  # tokens: reading fewer says more about guessing than about reading


@dataclass(slots=True)
class DraftKvState:
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


@dataclass(slots=True, eq=False)
class _Guess:
    """A line and what is guessed of it so far."""

    line: DraftRequest
    trail: DraftKvState
    tree: DraftTree  # what is guessed, and what else is likely in its places
    token_ids: list[int] = field(default_factory=list)
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
        tokens = ConcatView(self.line.token_ids, self.token_ids)
        # Where it is to be judged, a guess needs noise of its own: that of the position is what the verdict is drawn with.
        index = -2 - self.line.answer_index if self.judged else self.line.answer_index
        return SamplingRow(request.params, tokens, len(request.prompt_token_ids), request.eos_token_ids, index)

    def choose(self, choices: Sequence[tuple[int, float]]) -> None:
        """The first of these, which are likely there; the others may be right as well."""
        self._go_on(choices, "likely")

    def draw(self, token_id: int) -> None:
        """What the noise, a mask or a penalty has chosen, as it will for the model. Nobody says how likely that is."""
        self._go_on([(token_id, UNKNOWN)], "drawn")

    def _go_on(self, choices: Sequence[tuple[int, float]], source: str) -> None:
        self.token_ids.append(choices[0][0])
        self.tree.tips = [self.tree.add(self.tree.tips[0], choices, source)[0]]

    def chain(self) -> Draft:
        return Draft.chain(self.token_ids, tuple(self.proposals))


class DraftModel(ModelDrafter):
    def __init__(
        self,
        runner: Runner,
        kv: KvCacheManager,
        sampler: Sampler,
        *,
        costs: StepCosts,
        num_tokens: int = 8,
        max_depth: int = 5,
        max_step: int,
        max_positions: int,
        words: DraftVocabulary | None = None,
    ) -> None:
        """``costs`` of the steps that verify. ``max_depth``: of a guess, whose ``num_tokens`` may stand beside one another.
        ``max_step``: the most tokens that one step of ``runner`` takes. Nothing past ``max_positions`` is computed.

        ``words``: the tokens that the logits of ``runner`` are of, where these are not all.
        """
        self._runner, self._kv, self._sampler, self._words = runner, kv, sampler, words
        self.num_tokens, self._max_depth = num_tokens, max_depth
        self._max_step, self._max_positions = max_step, max_positions
        self._trails: dict[int, DraftKvState] = {}
        self._growth = Growth(costs)

    @property
    def aux_layer_indices(self) -> tuple[int, ...]:
        return ()

    @property
    def lengths(self) -> tuple[int, ...]:
        return (1, 2, 3, 4, 6, 8, 12)

    def cost(self, num_lines: int, num_tokens: int) -> float | None:
        return self._growth.pace.cost(num_lines, min(num_tokens, self._max_depth))

    def backlog(self, lines: Sequence[DraftRequest]) -> float:
        return self._growth.pace.reading(self._num_unread(lines))

    def _num_unread(self, lines: Sequence[DraftRequest]) -> int:
        """Tokens beyond the two that every round begins with: the last one, and a guess of its own that was right."""
        read = [len(trail.token_ids) if (trail := self._trails.get(line.sequence_id)) else 0 for line in lines]
        return sum(max(0, len(line.token_ids) - count - 2) for line, count in zip(lines, read, strict=True))

    def shape(self, num_tokens: int) -> Draft:
        return Draft.chain(range(num_tokens))

    def watch(self, lines: Sequence[DraftRequest], seen: TargetOutput) -> None:
        alive = {line.sequence_id for line in lines}
        for sequence_id in [known for known in self._trails if known not in alive]:
            self._drop(sequence_id)

    def guess(self, lines: Sequence[DraftRequest]) -> list[Draft]:
        self._growth.judge(lines)
        trails = [(line, self._follow(line)) for line in lines if line.room]
        guesses = [_Guess(line, trail, self._growth.plant(line)) for line, trail in trails if trail is not None]
        made = self._growth.grow(guesses, self.num_tokens, min(self.num_tokens, self._max_depth), self._advance)
        judged = {guess.line.sequence_id: guess.chain() for guess in guesses if guess.judged}
        return self._growth.drafts(lines, self.num_tokens, made, judged)

    def _drop(self, sequence_id: int) -> None:
        self._kv.close(sequence_id)
        del self._trails[sequence_id]

    def _follow(self, line: DraftRequest) -> DraftKvState | None:
        """The line's trail, as far as it is right. None while another line is about to read what both begin with."""
        trail = self._trails.get(line.sequence_id)
        if trail is not None:
            trail.follow(line.token_ids)
            return trail
        salt = f"tenant:{line.request.cache_salt}"
        hashes = self._kv.hashes(salt, line.token_ids)
        if self._kv.prefix_in_flight(hashes):
            return None
        cached = self._kv.open(line.sequence_id, salt, hashes)
        trail = self._trails[line.sequence_id] = DraftKvState(list(line.token_ids[:cached]), cached)
        return trail

    def _advance(self, guesses: list[_Guess]) -> list[_Guess] | None:
        """One step of the model. Returns the guesses that may go on; None where there was room for none."""
        begin = time.perf_counter()
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
            self._kv.commit(row.sequence_id, guess.line.token_ids, guess.trail.num_verified)
        drawing = [guess for guess, row in zip(planned, rows, strict=True) if row.num_logits]
        ended = self._draw(drawing, logits_RD)
        self._note(len(rows), self._max_step - budget, time.perf_counter() - begin)
        return [guess for guess in planned if guess not in ended]

    def _note(self, num_rows: int, num_tokens: int, seconds: float) -> None:
        """Where a call has read much beside what it guessed after, its time says what reading takes."""
        if num_tokens > 2 * num_rows + LONG:
            self._growth.pace.note_reading(num_tokens, seconds)
        else:
            self._growth.pace.note(num_rows, seconds)

    def _draw(self, guesses: Sequence[_Guess], logits_RD: Tensor) -> set[_Guess]:
        """The next token of each. Returns those that have none."""
        likely, drawn = self._likely(guesses, logits_RD), self._drawn(guesses, logits_RD)
        ended = set()
        for place, guess in enumerate(guesses):
            choices = likely.get(place, [])
            token_id = drawn[place] if place in drawn else choices[0][0]
            if token_id is None:
                ended.add(guess)
            elif choices and choices[0][0] == token_id:
                guess.choose(choices)
            else:
                guess.draw(token_id)
        return ended

    def _likely(self, guesses: Sequence[_Guess], logits_RD: Tensor) -> dict[int, list[tuple[int, float]]]:
        """What greedy lines may take, the likeliest first, and how likely it is."""
        places = [place for place, guess in enumerate(guesses) if guess.line.request.params.greedy]
        if not places:
            return {}
        ids = (lambda columns: columns) if self._words is None else self._words.token_ids
        lines = [guesses[place].line for place in places]
        tokens_RK, chances_RK = candidates(select_rows(logits_RD, places), lines, [0] * len(lines), ids, RANKS)
        rows = zip(places, tokens_RK.tolist(), chances_RK.tolist(), strict=True)
        return {place: list(zip(tokens, chances, strict=True)) for place, tokens, chances in rows}

    def _drawn(self, guesses: Sequence[_Guess], logits_RD: Tensor) -> dict[int, int | None]:
        """The tokens of lines that take another than the likeliest: they sample, or masks, bias or penalties act on them."""
        params = [guess.line.request.params for guess in guesses]
        places = [place for place, mine in enumerate(params) if not mine.greedy or self._sampler.shapes(mine)]
        if not places:
            return {}
        some_RD = select_rows(logits_RD, places)
        logits_RV = some_RD if self._words is None else self._words.spread(some_RD)
        views = [guesses[place].view() for place in places]
        drawn = self._sampler.tokens(logits_RV, views)
        for row, place in enumerate(places):
            if guesses[place].judged and drawn[row] is not None:
                guesses[place].proposals += self._sampler.probabilities(logits_RV[row : row + 1], views[row : row + 1])
        return dict(zip(places, drawn, strict=True))
