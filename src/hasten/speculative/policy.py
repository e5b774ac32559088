"""Which drafter, and how many guesses: what gives the most tokens a second by all that was measured so far.

In a step of ``n`` tokens a guess is worth verifying as long as its chance of becoming output, over the time that it adds to the
step, is more than what the step gives on average (Leviathan et al., 2022, section 3.4, with measured costs in the place of a
ratio). Guesses of all lines compete for the same step, the likeliest first. Where none is worth its time, none is made: that is
plain decoding.

The text itself tells, a few tokens later, which guesses were right, whether or not anybody verified them. So what is believed of
guesses does not depend on which of them were taken, and guesses from text, which cost nothing, are judged while none is taken.

A drafter that costs time of its own is asked where its guesses should pay for it. What is believed of one that is not asked grows
old, so it gets a small share of the time to show itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hasten.core.draft import NO_DRAFT, Draft
from hasten.speculative.drafters.base import Drafter, DraftRequest, ModelDrafter, TargetOutput
from hasten.speculative.outlook import Outlook, verdicts
from hasten.speculative.pace import Pace
from hasten.speculative.step_costs import StepCosts

FORESEEN = 256  # tokens: answers mostly end long before they must
SHARE = 0.01  # of the time for drafters that do not seem to pay
SHOWN = 2  # tokens that it is asked for then
# By which guesses must seem to pay: what they cost is sure, and what they bring a belief. Lines whose guesses are right end first,
# too, and what is left of a batch then takes nearly the time of a whole one.
MARGIN = 1.1
# Kinds of guesses from text. A guess is as long as the match was, and an answer that repeats itself does so once it is long.
LENGTHS = (2, 4, 8)
AGES = (8, 32)
Kind = tuple[int, int]
ANY: Kind = (0, 0)
ASKED: Kind = (-1, 0)  # what comes of asking: a drafter may choose to offer less than it was asked for, or nothing


class _Offer(NamedTuple):
    """A guess for one line, and what is believed of it."""

    draft: Draft = NO_DRAFT
    chances: Sequence[float] = ()

    @property
    def gain(self) -> float:
        return sum(self.chances)


NO_OFFER = _Offer()


@dataclass(slots=True)
class _Round:
    """What was proposed."""

    lengths: dict[int, int] = field(default_factory=dict)  # line -> how long it was then
    num_tokens: int = 0  # of the step that verifies it
    ended: float = 0.0  # when


class Auto:
    def __init__(
        self,
        free: Mapping[str, Drafter],
        paced: Mapping[str, ModelDrafter],
        costs: StepCosts,
        clock: Callable[[], float] = time.perf_counter,
        *,
        num_tokens: int | None = None,
    ) -> None:
        """``free`` drafters are asked in every round: they read text and take next to no time. ``costs`` of the steps that verify:
        somebody else keeps them up. ``num_tokens``: of a guess, at most; None: as many as pay.
        """
        self._free, self._paced, self._costs, self._clock = free, paced, costs, clock
        self._outlooks: dict[tuple[str, Kind], Outlook] = {}
        # (line, drafter, kind) -> what it guessed in the last round, behind how many tokens should have been guessed at least
        self._guesses: dict[tuple[int, str, Kind], tuple[int, Draft]] = {}
        self._last = _Round()
        self._rates = Pace()  # seconds per token of a step, whoever guessed
        self._allowance = dict.fromkeys(paced, 0.0)  # seconds
        self._lengths = {name: _lengths(drafter, num_tokens) for name, drafter in paced.items()}

    @property
    def aux_layer_indices(self) -> tuple[int, ...]:
        return tuple(
            dict.fromkeys(tap for drafter in (*self._free.values(), *self._paced.values()) for tap in drafter.aux_layer_indices)
        )

    def propose(self, lines: Sequence[DraftRequest], seen: TargetOutput) -> list[Draft]:
        self._learn(lines, seen)
        best = [NO_OFFER] * len(lines)
        for name, drafter in self._free.items():
            best = _better(best, self._offers(name, lines, drafter.propose(lines, seen)))
        for paced in self._paced.values():  # before it is asked what it would have to read
            paced.watch(lines, seen)
        asked, length, due = self._choose(best, lines)
        if asked is not None:
            best = _better(best, self._offers(asked, lines, self._ask(asked, length, lines, due)))
        counts = self._costs.counts([offer.chances for offer in best], 0.0, MARGIN)
        drafts = [offer.draft.cut(count) for offer, count in zip(best, counts, strict=True)]
        lengths = {line.sequence_id: len(line.token_ids) for line in lines}
        self._last = _Round(lengths, len(lines) + sum(counts), self._clock())
        return drafts

    def _ask(self, name: str, length: int, lines: Sequence[DraftRequest], due: bool) -> list[Draft]:
        """A drafter's guesses of so many tokens. ``due``: it is to show itself, for which one line will do."""
        drafter, begin = self._paced[name], self._clock()
        drafter.num_tokens = length
        asked = [min(lines, key=lambda line: drafter.backlog([line]))] if due else lines
        drafts = dict(zip((line.sequence_id for line in asked), drafter.guess(asked), strict=True))
        self._guesses |= {(line_id, name, ASKED): (length, draft) for line_id, draft in drafts.items()}
        if due:  # all of it counts: it may have had a whole prompt to read first
            self._allowance[name] -= self._clock() - begin
        return [drafts.get(line.sequence_id, NO_DRAFT) for line in lines]

    # ---------------------------------------------------------------- what is known

    def _learn(self, lines: Sequence[DraftRequest], seen: TargetOutput) -> None:
        """How the last round's guesses fared, and what the step took."""
        if seen.num_tokens == self._last.num_tokens > 0:  # else it was another step: a prompt came between, or guesses were cut
            seconds = self._clock() - self._last.ended
            for name, allowed in self._allowance.items():
                self._allowance[name] = min(allowed + SHARE / len(self._paced) * seconds, seconds)
            known = [line for line in lines if line.sequence_id in self._last.lengths]
            gained = sum(len(line.token_ids) - self._last.lengths[line.sequence_id] for line in known)
            if len(known) == len(self._last.lengths) == len(lines):
                self._rates.note(len(lines), seconds / max(gained, 1))
        texts = {line.sequence_id: line.token_ids for line in lines}
        guesses, self._guesses = self._guesses, {}
        for (line_id, name, kind), (length, draft) in guesses.items():
            if line_id in texts:
                missing = dict.fromkeys(range(len(draft), length), False)
                found = verdicts(draft, texts[line_id][self._last.lengths[line_id] :])
                self._outlook(name, kind).note(missing | found)

    def _outlook(self, name: str, kind: Kind) -> Outlook:
        return self._outlooks.setdefault((name, kind), Outlook())

    def _offers(self, name: str, lines: Sequence[DraftRequest], drafts: Sequence[Draft]) -> list[_Offer]:
        """Guesses beyond the end of an answer are left out."""
        wanted = [draft.cut(len(draft), line.room) for line, draft in zip(lines, drafts, strict=True)]
        return [self._offer(name, line, draft) if draft else NO_OFFER for line, draft in zip(lines, wanted, strict=True)]

    def _offer(self, name: str, line: DraftRequest, draft: Draft) -> _Offer:
        kind = _kind(line, draft) if name in self._free else ANY
        self._guesses[line.sequence_id, name, kind] = 0, draft
        return _Offer(draft, self._outlook(name, kind).chances(draft))

    # ---------------------------------------------------------------- what is worth it

    def _choose(self, offers: Sequence[_Offer], lines: Sequence[DraftRequest]) -> tuple[str | None, int, bool]:
        """The drafter to ask, if any, and for how many tokens; and whether it is asked to show itself, not because it pays."""
        num_lines = len(lines)
        if num_lines == 0:
            return None, 0, False
        to_come = sum(min(FORESEEN, line.room + 1) for line in lines)  # as far as anybody can rely on it
        free = sorted((chance for offer in offers for chance in offer.chances), reverse=True)
        without = max(self._costs.best(num_lines, free, 0.0)[1], MARGIN * num_lines / self._costs.seconds(num_lines))
        best = without
        chosen: tuple[str | None, int] = (None, 0)
        usual = self._rates.seconds(num_lines)
        for name, drafter in self._paced.items():
            rate, backlog = 0.0, drafter.backlog(lines)
            for length in self._lengths[name]:
                shorter, cost = rate, drafter.cost(num_lines, length)
                if cost is None:  # never asked yet
                    break
                chances = self._outlook(name, ASKED).chances(drafter.shape(length))
                gain = sum(chances)
                all_chances = [chance for offer in offers for chance in (offer.chances if offer.gain > gain else chances)]
                rate = self._costs.best(num_lines, sorted(all_chances, reverse=True), cost)[1]
                if rate < shorter:
                    break  # still longer guesses are still less likely
                if backlog and usual and MARGIN * (to_come / rate + backlog) > to_come * usual:
                    continue  # once begun it would pay, but the text will soon be guessed for nothing again
                if rate > best:
                    best, chosen = rate, (name, length)
        return self._due(num_lines, chosen, self._costs.seconds(num_lines) * (1 - without / best))

    def _due(self, num_lines: int, chosen: tuple[str | None, int], lost: float) -> tuple[str | None, int, bool]:
        """The choice; or, if its time has come, a drafter that is not chosen, or more of the one that is.

        ``lost``: seconds that a step without the choice costs.
        """
        for name, drafter in self._paced.items():
            if self._allowance[name] <= 0:
                continue
            length = next((length for length in self._lengths[name] if length > chosen[1]), None)
            if name != chosen[0]:
                self._allowance[name] -= lost
                return name, min(SHOWN, self._lengths[name][-1]), True
            if length is not None:
                self._allowance[name] -= (drafter.cost(num_lines, length) or 0.0) - (drafter.cost(num_lines, chosen[1]) or 0.0)
                return name, length, False
        return *chosen, False


def _better(offers: Sequence[_Offer], others: Sequence[_Offer]) -> list[_Offer]:
    return [max(pair, key=lambda offer: offer.gain) for pair in zip(offers, others, strict=True)]


def _kind(line: DraftRequest, draft: Draft) -> Kind:
    return sum(len(draft) > size for size in LENGTHS), sum(line.num_answered >= age for age in AGES)


def _lengths(drafter: ModelDrafter, most: int | None) -> tuple[int, ...]:
    """What it may be asked for, short ones first."""
    return drafter.lengths if most is None else tuple(dict.fromkeys(min(length, most) for length in drafter.lengths))
