"""Which drafter, and how many guesses: what gives the most tokens a second by all that was measured so far.

In a step of ``n`` tokens a guess is worth verifying as long as its chance of becoming output, over the time that it adds to the
step, is more than what the step gives on average (Leviathan et al., 2022, section 3.4, with measured costs in the place of a
ratio). Guesses of all lines compete for the same step, the likeliest first. Where none is worth its time, none is made: that is
plain decoding.

A drafter that costs time of its own is asked where its guesses should pay for it. What is believed of one that is not asked grows
old, so it gets a small share of the time to show itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hasten.core.draft import NO_DRAFT, Draft
from hasten.decoding.drafters.base import Drafter, Line, PacedDrafter, Seen
from hasten.decoding.outlook import Outlook
from hasten.decoding.pace import Pace
from hasten.decoding.step_costs import StepCosts

FORESEEN = 256  # tokens: answers mostly end long before they must
SHARE = 0.01  # of the time for each drafter that does not seem to pay
SHOWN = 2  # tokens that it may show then
MARGIN = 1.1  # by which guesses must seem to pay that something has to be read for: reading is a cost, and their gain a belief
KINDS = (2, 4, 8)  # a guess from text is as long as the match was: longer ones are another kind


class _Offer(NamedTuple):
    """A guess for one line, and what is believed of it."""

    name: str = ""  # of the drafter
    kind: int = 0
    draft: Draft = NO_DRAFT
    chances: Sequence[float] = ()

    @property
    def gain(self) -> float:
        return sum(self.chances)


NO_OFFER = _Offer()


@dataclass(slots=True)
class _Round:
    """What was proposed."""

    offers: dict[int, _Offer] = field(default_factory=dict)  # line -> what
    lengths: dict[int, int] = field(default_factory=dict)  # line -> how long it was then
    num_tokens: int = 0  # of the step that verifies it
    ended: float = 0.0  # when


class Auto:
    def __init__(
        self,
        free: Mapping[str, Drafter],
        paced: Mapping[str, PacedDrafter],
        costs: StepCosts,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``free`` drafters are asked in every round: they read text and take next to no time. ``costs`` of the steps that verify:
        somebody else keeps them up.
        """
        self._free, self._paced, self._costs, self._clock = free, paced, costs, clock
        self._outlooks: dict[tuple[str, int], Outlook] = {}
        self._last = _Round()
        self._rates = Pace()  # seconds per token of a step, whoever guessed
        self._allowance = dict.fromkeys((*free, *paced), 0.0)  # seconds

    @property
    def taps(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(tap for drafter in (*self._free.values(), *self._paced.values()) for tap in drafter.taps))

    def propose(self, lines: Sequence[Line], seen: Seen) -> list[Draft]:
        self._learn(lines, seen)
        offered = {name: self._offers(name, drafter.propose(lines, seen)) for name, drafter in self._free.items()}
        best = [max(each, key=lambda offer: offer.gain) for each in zip([NO_OFFER] * len(lines), *offered.values(), strict=True)]
        for paced in self._paced.values():  # before it is asked what it would have to read
            paced.watch(lines, seen)
        asked, length, due = self._choose(best, lines)
        if asked is not None:
            offered[asked] = self._offers(asked, self._ask(asked, length, lines, due))
            best = [max(pair, key=lambda offer: offer.gain) for pair in zip(best, offered[asked], strict=True)]
        counts = self._costs.counts([offer.chances for offer in best], 0.0)
        self._show(offered, best, counts)
        drafts = [offer.draft.cut(count) for offer, count in zip(best, counts, strict=True)]
        offers = {
            line.sequence_id: offer._replace(draft=draft) for line, offer, draft in zip(lines, best, drafts, strict=True) if draft
        }
        lengths = {line.sequence_id: len(line.token_ids) for line in lines}
        self._last = _Round(offers, lengths, len(lines) + sum(counts), self._clock())
        return drafts

    def _ask(self, name: str, length: int, lines: Sequence[Line], due: bool) -> list[Draft]:
        """A drafter's guesses of so many tokens. ``due``: it is to show itself, for which one line will do."""
        drafter, begin = self._paced[name], self._clock()
        drafter.num_tokens = length
        asked = [min(lines, key=lambda line: drafter.backlog([line]))] if due else lines
        drafts = dict(zip((line.sequence_id for line in asked), drafter.guess(asked), strict=True))
        if due:  # all of it counts: it may have had a whole prompt to read first
            self._allowance[name] -= self._clock() - begin
        return [drafts.get(line.sequence_id, NO_DRAFT) for line in lines]

    # ---------------------------------------------------------------- what is known

    def _learn(self, lines: Sequence[Line], seen: Seen) -> None:
        """How the last round's guesses fared, and what the step took."""
        if seen.num_tokens == self._last.num_tokens > 0:  # else it was another step: a prompt came between, or guesses were cut
            seconds = self._clock() - self._last.ended
            for name, allowed in self._allowance.items():
                self._allowance[name] = min(allowed + SHARE * seconds, seconds)
            known = [line for line in lines if line.sequence_id in self._last.lengths]
            gained = sum(len(line.token_ids) - self._last.lengths[line.sequence_id] for line in known)
            if len(known) == len(self._last.lengths) == len(lines):
                self._rates.note(len(lines), seconds / max(gained, 1))
        for line in lines:
            length = self._last.lengths.get(line.sequence_id, len(line.token_ids))
            if line.sequence_id in self._last.offers and length < len(line.token_ids):
                offer = self._last.offers[line.sequence_id]
                self._outlook(offer.name, offer.kind).note(offer.draft, offer.draft.path(line.token_ids[length:-1]))

    def _outlook(self, name: str, kind: int) -> Outlook:
        return self._outlooks.setdefault((name, kind), Outlook())

    def _offers(self, name: str, drafts: Sequence[Draft]) -> list[_Offer]:
        kinds = [sum(len(draft) > size for size in KINDS) if name in self._free else 0 for draft in drafts]
        return [
            _Offer(name, kind, draft, self._outlook(name, kind).chances(draft)) if draft else NO_OFFER
            for kind, draft in zip(kinds, drafts, strict=True)
        ]

    # ---------------------------------------------------------------- what is worth it

    def _choose(self, offers: Sequence[_Offer], lines: Sequence[Line]) -> tuple[str | None, int, bool]:
        """The drafter to ask, if any, and for how many tokens; and whether it is asked to show itself, not because it pays."""
        num_lines = len(lines)
        if num_lines == 0:
            return None, 0, False
        to_come = sum(_to_come(line) for line in lines)
        free = sorted((chance for offer in offers for chance in offer.chances), reverse=True)
        best = self._costs.best(num_lines, free, 0.0)[1]
        chosen: tuple[str | None, int] = (None, 0)
        for name, drafter in self._paced.items():
            for length in drafter.lengths:
                cost = drafter.cost(num_lines, length)
                if cost is None:  # never asked yet
                    break
                chances = self._outlook(name, 0).chances(drafter.shape(length))
                gain = sum(chances)
                all_chances = [chance for offer in offers for chance in (offer.chances if offer.gain > gain else chances)]
                rate = self._costs.best(num_lines, sorted(all_chances, reverse=True), cost)[1]
                backlog = drafter.backlog(lines)
                usual = self._rates.seconds(num_lines)
                if backlog and usual and MARGIN * (to_come / rate + backlog) > to_come * usual:
                    continue  # once begun it would pay, but the text will soon be guessed for nothing again
                if rate > best:
                    best, chosen = rate, (name, length)
        return self._due(num_lines, chosen)

    def _due(self, num_lines: int, chosen: tuple[str | None, int]) -> tuple[str | None, int, bool]:
        """The choice; or, if its time has come, a drafter that is not chosen, or more of the one that is."""
        for name, drafter in self._paced.items():
            if self._allowance[name] <= 0:
                continue
            length = next((length for length in drafter.lengths if length > chosen[1]), None)
            if chosen[0] is None or drafter.cost(num_lines, SHOWN) is None:
                return name, SHOWN, True
            if name == chosen[0] and length is not None:
                more = (drafter.cost(num_lines, length) or 0.0) - (drafter.cost(num_lines, chosen[1]) or 0.0)
                verified = self._costs.seconds(num_lines * (1 + length)) - self._costs.seconds(num_lines * (1 + chosen[1]))
                self._allowance[name] -= more + verified
                return name, length, False
        return *chosen, False

    def _show(self, offered: Mapping[str, Sequence[_Offer]], best: list[_Offer], counts: list[int]) -> None:
        """Let one drafter that is not believed in show a guess, if it is due. Changes ``best`` and ``counts``."""
        used = {offer.name for offer, count in zip(best, counts, strict=True) if count}
        for name, offers in offered.items():
            line = max(range(len(offers)), key=lambda i: len(offers[i].draft), default=None)
            asked = name in self._paced  # it has paid for being asked, and is not asked to be silent
            if line is None or name in used or not (asked or self._allowance[name] > 0) or not offers[line].draft:
                continue
            expected = len(best) + sum(sum(offer.chances[:count]) for offer, count in zip(best, counts, strict=True))
            before, lost = self._costs.seconds(len(best) + sum(counts)), sum(best[line].chances[: counts[line]])
            best[line], counts[line] = offers[line], min(SHOWN, len(offers[line].draft))
            lost = max(0.0, lost - sum(offers[line].chances[:SHOWN]))
            after = self._costs.seconds(len(best) + sum(counts))
            self._allowance[name] -= before * lost / expected + max(0.0, after - before)
            return


def _to_come(line: Line) -> int:
    """Tokens that the line may still get, as far as anybody can rely on them."""
    most = line.request.params.max_tokens or FORESEEN
    return max(1, min(FORESEEN, most - (len(line.token_ids) - len(line.request.prompt_token_ids))))
