"""Suffix decoding: proposes what followed the longest suffix in the sequence or in recent outputs.

SuffixDecoding (Oliaro et al., 2024, arXiv 2411.04975), with the first occurrence in place of the most frequent one. It pays where
requests are alike: agents, templates, retries. Tenants (``Request.cache_salt``) never see each other's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hasten.core.draft import Draft
from hasten.speculative.drafters.base import MAX_INDEXED_TOKENS, NO_TARGET_OUTPUT, DraftRequest, TargetOutput
from hasten.speculative.drafters.continuation import continuation
from hasten.speculative.drafters.suffix_automaton import SuffixAutomaton

MAX_REMATCH = 64  # tokens of a suffix that is matched anew, when a pool has changed
SEPARATOR = -1  # between two outputs of a pool: no match reaches over it


@dataclass(slots=True)
class _Match:
    """The longest suffix of one sequence in one pool."""

    state: int = 0
    length: int = 0
    num_matched: int = 0  # tokens of the sequence
    automaton: SuffixAutomaton | None = None  # to which ``state`` belongs, when it had
    num_tokens: int = -1  # this many tokens

    def update(self, automaton: SuffixAutomaton, token_ids: Sequence[int]) -> None:
        if self.automaton is not automaton or self.num_tokens != len(automaton.token_ids):
            self.automaton, self.num_tokens = automaton, len(automaton.token_ids)
            self.state, self.length, self.num_matched = 0, 0, max(0, len(token_ids) - MAX_REMATCH)
        self.state, self.length = automaton.match(self.state, self.length, token_ids[self.num_matched :])
        self.num_matched = len(token_ids)


@dataclass(slots=True)
class _SequenceState:
    request: DraftRequest
    own: SuffixAutomaton = field(default_factory=SuffixAutomaton)
    begin: int = 0  # position of the first token in ``own``
    matches: tuple[_Match, _Match] = field(default_factory=lambda: (_Match(), _Match()))  # in the tenant's two pools


@dataclass(slots=True)
class _Pools:
    """Outputs of one tenant. A full newer pool becomes the older one, and the older one is dropped."""

    newer: SuffixAutomaton = field(default_factory=SuffixAutomaton)
    older: SuffixAutomaton = field(default_factory=SuffixAutomaton)

    def add(self, token_ids: Sequence[int], max_tokens: int) -> None:
        if len(self.newer.token_ids) + len(token_ids) > max_tokens and self.newer.token_ids:
            self.newer, self.older = SuffixAutomaton(), self.newer
        self.newer.extend((*token_ids[-max_tokens:], SEPARATOR))

    def __len__(self) -> int:
        return len(self.newer.token_ids) + len(self.older.token_ids)


@dataclass(slots=True)
class Suffix:
    num_tokens: int = 12  # of a draft, at most
    min_match: int = 2  # tokens
    tokens_per_match: float = 2.0  # draft tokens per matched token: longer matches predict further
    pool_tokens: int = 50_000  # of a pool; a tenant has two
    max_tenants: int = 64  # the least recently used one is dropped
    # Indexed of all running sequences together; of longer ones only the newest tokens are. As many again in all pools together.
    max_tokens: int = MAX_INDEXED_TOKENS
    _sequences: dict[int, _SequenceState] = field(default_factory=dict, init=False)
    _pools: dict[str, _Pools] = field(default_factory=dict, init=False)

    @property
    def aux_layer_indices(self) -> tuple[int, ...]:
        return ()

    def propose(self, requests: Sequence[DraftRequest], output: TargetOutput = NO_TARGET_OUTPUT) -> list[Draft]:
        before, self._sequences = self._sequences, {}
        for request in requests:
            known = before.pop(request.sequence_id, None)
            self._sequences[request.sequence_id] = _SequenceState(request) if known is None else known
        for ended in before.values():  # or preempted: such a sequence is new when it comes back
            answer = ended.request.token_ids[len(ended.request.request.prompt_token_ids) :]
            self._add_to_pools(ended.request.request.cache_salt, answer)
        limit = self.max_tokens // max(1, len(requests))
        return [Draft.chain(self._lookup(request, self._sequences[request.sequence_id], limit)) for request in requests]

    def _add_to_pools(self, cache_salt: str, answer: Sequence[int]) -> None:
        self._tenant_pools(cache_salt).add(answer, min(self.pool_tokens, self.max_tokens // 2 - 1))  # 1 for the separator
        num_tokens = sum(map(len, self._pools.values()))
        while num_tokens > self.max_tokens and len(self._pools) > 1:
            num_tokens -= len(self._pools.pop(next(iter(self._pools))))

    def _tenant_pools(self, cache_salt: str) -> _Pools:
        """Return a tenant's pools, as the most recently used ones."""
        pools = self._pools.pop(cache_salt) if cache_salt in self._pools else _Pools()
        self._pools[cache_salt] = pools
        while len(self._pools) > self.max_tenants:
            del self._pools[next(iter(self._pools))]
        return pools

    def _lookup(self, request: DraftRequest, sequence: _SequenceState, limit: int) -> tuple[int, ...]:
        if len(request.token_ids) - sequence.begin > limit:
            sequence.own, sequence.begin = SuffixAutomaton(), len(request.token_ids) - limit // 2
        sequence.own.extend(request.token_ids[sequence.begin + len(sequence.own.token_ids) :])
        length, start = sequence.own.longest_repeated_suffix()
        source: Sequence[int] = sequence.own.token_ids
        pools = self._tenant_pools(request.request.cache_salt)
        for automaton, match in zip((pools.newer, pools.older), sequence.matches, strict=True):
            match.update(automaton, request.token_ids)
            if match.length > length:
                length, start, source = match.length, automaton.first_end(match.state), automaton.token_ids
        if length < self.min_match:
            return ()
        draft = continuation(source, start, min(self.num_tokens, int(length * self.tokens_per_match)))
        return draft[: draft.index(SEPARATOR)] if SEPARATOR in draft else draft
