"""Guesses that the text goes on as it, or another answer of late, did after the longest run of tokens that both have in common.

SuffixDecoding (Oliaro et al., 2024, arXiv 2411.04975), with the first occurrence in place of the most frequent one. It pays where
many requests are alike: agents, templates, retries. Tenants (``Request.cache_salt``) never see each other's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hasten.core.draft import Draft
from hasten.speculative.drafters.base import NO_TARGET_OUTPUT, DraftRequest, TargetOutput
from hasten.speculative.drafters.continuation import continuation
from hasten.speculative.drafters.suffix_automaton import SuffixAutomaton

Ids = tuple[int, ...]

# Runs longer than this are not looked for when a match has to be found anew.
LONGEST = 64


@dataclass(slots=True)
class _Match:
    """The end of one line in one automaton."""

    state: int = 0
    length: int = 0
    num_seen: int = 0  # tokens of the line
    automaton: SuffixAutomaton | None = None  # that ``state`` is of, as it was when its text had
    version: int = -1  # this length

    def follow(self, automaton: SuffixAutomaton, token_ids: Sequence[int]) -> None:
        if self.automaton is not automaton or self.version != len(automaton.token_ids):
            self.automaton, self.version = automaton, len(automaton.token_ids)
            self.state, self.length, self.num_seen = 0, 0, max(0, len(token_ids) - LONGEST)
        self.state, self.length = automaton.match(self.state, self.length, token_ids[self.num_seen :])
        self.num_seen = len(token_ids)


@dataclass(slots=True)
class _Known:
    """One line: its own text, and where its end is in its tenant's two pools of answers."""

    line: DraftRequest
    own: SuffixAutomaton = field(default_factory=SuffixAutomaton)
    matches: tuple[_Match, _Match] = field(default_factory=lambda: (_Match(), _Match()))


@dataclass(slots=True)
class _Pools:
    """Answers of one tenant. When the newer pool is full it becomes the older one, and the older one is forgotten."""

    newer: SuffixAutomaton = field(default_factory=SuffixAutomaton)
    older: SuffixAutomaton = field(default_factory=SuffixAutomaton)

    def add(self, token_ids: Sequence[int], room: int) -> None:
        if len(self.newer.token_ids) + len(token_ids) > room and self.newer.token_ids:
            self.newer, self.older = SuffixAutomaton(), self.newer
        self.newer.extend((*token_ids, END))


END = -1  # between two answers: no run of tokens reaches over it


@dataclass(slots=True)
class Suffix:
    num_tokens: int = 12  # of a guess, at most
    shortest: int = 2  # run of tokens that is believed
    factor: float = 2.0  # tokens guessed per token of the run: the longer the past is alike, the further is the future
    room: int = 50_000  # tokens of answers remembered per tenant, twice
    max_tenants: int = 64  # the one that was idle the longest is forgotten first
    _known: dict[int, _Known] = field(default_factory=dict, init=False)
    _pools: dict[str, _Pools] = field(default_factory=dict, init=False)

    def propose(self, lines: Sequence[DraftRequest], seen: TargetOutput = NO_TARGET_OUTPUT) -> list[Draft]:
        before, self._known = self._known, {}
        for line in lines:
            known = before.pop(line.sequence_id) if line.sequence_id in before else _Known(line)
            self._known[line.sequence_id] = known
        for known in before.values():  # they have ended, or will be new when they come back
            answer = known.line.token_ids[len(known.line.request.prompt_token_ids) :]
            self._tenant(known.line.request.cache_salt).add(answer, self.room)
        return [Draft.chain(self._guess(line, self._known[line.sequence_id])) for line in lines]

    @property
    def aux_layer_indices(self) -> tuple[int, ...]:
        return ()

    def _tenant(self, salt: str) -> _Pools:
        """Moves to the end of the order in which tenants are forgotten."""
        pools = self._pools.pop(salt) if salt in self._pools else _Pools()
        self._pools[salt] = pools
        while len(self._pools) > self.max_tenants:
            del self._pools[next(iter(self._pools))]
        return pools

    def _guess(self, line: DraftRequest, known: _Known) -> Ids:
        known.own.extend(line.token_ids[len(known.own.token_ids) :])
        length, begin = known.own.repeated()
        text: Sequence[int] = known.own.token_ids
        pools = self._tenant(line.request.cache_salt)
        for automaton, match in zip((pools.newer, pools.older), known.matches, strict=True):
            match.follow(automaton, line.token_ids)
            if match.length > length:
                length, begin, text = match.length, automaton.place(match.state), automaton.token_ids
        if length < self.shortest:
            return ()
        guess = continuation(text, begin, min(self.num_tokens, int(length * self.factor)))
        return guess[: guess.index(END)] if END in guess else guess
