"""How far trees of guesses grow, and what of them is verified: as far as it pays, by what either was seen to take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, TypeVar

from hasten.core.draft import NO_DRAFT, Draft
from hasten.speculative.draft_tree import DraftTree
from hasten.speculative.drafters.base import DraftRequest
from hasten.speculative.pace import Pace
from hasten.speculative.step_costs import StepCosts
from hasten.speculative.trust import Trust


class Guess(Protocol):
    """What is guessed of a line."""

    @property
    def line(self) -> DraftRequest: ...

    @property
    def tree(self) -> DraftTree: ...


G = TypeVar("G", bound=Guess)


@dataclass(slots=True)
class Growth:
    """What a guesser knows of its guessing. Lives as long as it does."""

    costs: StepCosts  # of the steps that verify
    pace: Pace = field(default_factory=Pace)
    trust: Trust = field(default_factory=Trust)
    _planted: dict[int, tuple[int, DraftTree]] = field(default_factory=dict)  # line -> its length then, and its tree

    def judge(self, lines: Iterable[DraftRequest]) -> None:
        """The last round's trees, by what has become of the lines since. Those of lines that are not here are forgotten."""
        planted, self._planted = self._planted, {}
        for line in lines:
            if line.sequence_id in planted:
                length, tree = planted[line.sequence_id]
                tree.judge(line.token_ids[length:])

    def plant(self, line: DraftRequest) -> DraftTree:
        tree = DraftTree(self.trust)
        self._planted[line.sequence_id] = len(line.token_ids), tree
        return tree

    def grow(self, guesses: Sequence[G], most: int, calls: int, advance: Callable[[list[G]], list[G] | None]) -> int:
        """Up to so many times, ``advance`` those from whose tips going on may pay. Returns how many times it was done.

        ``most``: nodes of each tree that are verified. ``advance`` calls the guesser for some guesses, tells ``pace`` what that
        took, and returns those that may go on; None where there was room for none of them, and no call was made.
        """
        active, made = list(guesses), 0
        while made < calls and (active := self._going(active, guesses, most, made)):
            advanced = advance(active)
            if advanced is None:
                break
            active, made = advanced, made + 1
        if guesses:
            self.pace.note_round(len(guesses), calls, made)
        return made

    def _going(self, active: list[G], guesses: Sequence[G], most: int, made: int) -> list[G]:
        """Those of the active ones that go on after so many calls."""
        if not active:
            return []
        call = self.pace.seconds(len(active)) or 0.0
        least = doubt([guess.tree for guess in guesses], most, self.costs, made * call, call / len(active))
        for guess in active:
            guess.tree.prune(least)
        return [guess for guess in active if guess.tree.tips and guess.tree.height < guess.line.room]

    def drafts(
        self, lines: Sequence[DraftRequest], most: int, calls: int, whole: Mapping[int, Draft] = MappingProxyType({})
    ) -> list[Draft]:
        """Of each line what is ``worthwhile`` of the tree that was planted for it, after so many calls for guesses.

        ``whole``: of these sequences, drafts that nothing is left out of.
        """
        grown = [line.sequence_id for line in lines if line.sequence_id in self._planted and line.sequence_id not in whole]
        trees = [self._planted[sequence_id][1] for sequence_id in grown]
        chosen = worthwhile(trees, most, self.costs, calls * (self.pace.seconds(len(trees)) or 0.0))
        drafts = {**whole, **dict(zip(grown, chosen, strict=True))}
        return [drafts.get(line.sequence_id, NO_DRAFT) for line in lines]


def doubt(trees: Sequence[DraftTree], most: int, costs: StepCosts, spent: float, call: float) -> float:
    """How likely a node has to be for a guess after it to be worth its row and ``call`` seconds of guessing, were that one sure.

    ``most`` and ``spent`` as below. What is likelier is gone on from: nobody knows how sure the guess after it is.
    """
    chances = sorted((tree.nodes[node].chance for tree in trees for node in tree.likeliest(most)), reverse=True)
    count, rate = costs.best(len(trees), chances, spent)
    rows = len(trees) + count
    return rate * (costs.seconds(rows + 1) - costs.seconds(rows) + call)


def worthwhile(trees: Sequence[DraftTree], most: int, costs: StepCosts, spent: float) -> list[Draft]:
    """Of each tree at most ``most`` nodes: together those with which the step that verifies them gives the most tokens a second.

    ``spent``: seconds that went into guessing.
    """
    likeliest = [tree.likeliest(most) for tree in trees]
    chances = [[tree.nodes[node].chance for node in nodes] for tree, nodes in zip(trees, likeliest, strict=True)]
    counts = costs.counts(chances, spent)
    return [tree.draft(nodes[:count]) for tree, nodes, count in zip(trees, likeliest, counts, strict=True)]
