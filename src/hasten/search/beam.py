"""``BeamSearch``: keep the ``beam_width`` best sequences at every step (Lowerre, 1976).

It knows no model and no KV cache. The engine brings the best candidates over all live beams, and the search chooses among them::

    live beams        candidates, best first            BeamStep
    0: a b      ──►   (0, c, -1.2) (1, eos, -1.3)  ──►  beams (0, c) (0, d)   0 keeps its keys and values, and d is a fork
    1: a x            (0, d, -1.7) (1, y, -2.0)         ended (1, eos)        1 has no continuation and is dropped

The rules are those of ``generate(num_beams=...)`` in transformers, so sequences and scores are equal:

- A candidate that ends becomes a hypothesis only if it is among the ``beam_width`` best of its step. Its score is its
  log-probability over ``length ** length_penalty``; the length counts new tokens, the ending one included (Wu et al., 2016).
- The best ``beam_width`` candidates that do not end become the live beams. So the search needs
  ``beam_width * (1 + number of ending tokens)`` candidates, and at least ``2 * beam_width``.
- At ``max_new_tokens`` every beam ends.
- The search is done when it has ``beam_width`` hypotheses and the best live beam cannot beat the worst of them. The score of that
  beam is penalised at its present length, or at ``max_new_tokens`` if ``early_stopping`` is "never" and the penalty positive.
- With ``early_stopping=True`` the search is done when it has ``beam_width`` hypotheses.

One difference: if fewer than ``beam_width`` beams are possible, transformers adds beams with scores of about -1e9. This search has
fewer beams and fewer answers instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal


@dataclass(frozen=True, slots=True)
class BeamCandidate:
    """A live beam with one more token."""

    parent: int  # index of the live beam
    token_id: int
    score: float  # the parent's score plus the processed log-probability of the token


@dataclass(frozen=True, slots=True)
class BeamStep:
    """One step. The first candidate of a parent keeps its keys and values; each further one is a fork."""

    beams: tuple[BeamCandidate, ...]  # the new live beams, best first; empty when the search is done
    ended: tuple[BeamCandidate, ...]  # the new hypotheses, best first
    done: bool


@dataclass(frozen=True, slots=True)
class BeamHypothesis:
    """An answer of the search."""

    token_ids: tuple[int, ...]  # the ending token included
    score: float  # length-penalised
    finished: bool  # whether it has an ending token; False: at the length limit, or still a live beam


@dataclass(slots=True, kw_only=True)
class BeamSearch:
    """The beam search of one request. It starts with one live beam: the prompt, with score 0."""

    beam_width: int
    length_penalty: float
    early_stopping: bool | Literal["never"]
    num_return_sequences: int
    eos_token_ids: tuple[int, ...]  # every ending token, stop tokens included
    max_new_tokens: int

    done: bool = field(default=False, init=False)
    beam_scores: tuple[float, ...] = field(default=(0.0,), init=False)  # per live beam, best first
    beam_token_ids: tuple[tuple[int, ...], ...] = field(default=((),), init=False)  # new tokens of each live beam
    hypotheses: tuple[BeamHypothesis, ...] = field(default=(), init=False)  # best first, at most ``beam_width``

    def __post_init__(self) -> None:
        assert 1 <= self.num_return_sequences <= self.beam_width
        assert self.max_new_tokens >= 1
        self.eos_token_ids = tuple(dict.fromkeys(self.eos_token_ids))

    @property
    def num_candidates(self) -> int:
        """The number of candidates that ``advance`` needs; fewer only if fewer tokens are allowed."""
        return max(2, 1 + len(self.eos_token_ids)) * self.beam_width

    def advance(self, candidates: Sequence[BeamCandidate]) -> BeamStep:
        """Take one step. ``candidates`` are the best over all live beams, best first.

        Without candidates (every token is forbidden) the live beams become hypotheses.
        """
        assert not self.done, "the search is done"
        assert all(a.score >= b.score for a, b in pairwise(candidates)), "candidates must be best first"
        if not candidates:
            self.hypotheses = self.best(self.beam_width)
        length = len(self.beam_token_ids[0]) + 1
        at_limit = length == self.max_new_tokens
        ended: list[BeamCandidate] = []
        live: list[BeamCandidate] = []
        for rank, candidate in enumerate(candidates):
            if not at_limit and candidate.token_id not in self.eos_token_ids:
                live.append(candidate)
            elif rank < self.beam_width:
                ended.append(candidate)
        self.hypotheses = self._ranked([self._hypothesis(candidate, length) for candidate in ended], self.beam_width)
        self.done = self._is_done(live, length)
        beams = () if self.done else tuple(live[: self.beam_width])
        self.beam_token_ids = tuple((*self.beam_token_ids[beam.parent], beam.token_id) for beam in beams)
        self.beam_scores = tuple(beam.score for beam in beams)
        return BeamStep(beams, tuple(ended), self.done)

    def best(self, n: int | None = None) -> tuple[BeamHypothesis, ...]:
        """Return the best ``n`` answers (None: ``num_return_sequences``), best first.

        Live beams count too, with the score of their present length.
        """
        live = [
            BeamHypothesis(token_ids, self._penalised(score, max(1, len(token_ids))), finished=False)
            for token_ids, score in zip(self.beam_token_ids, self.beam_scores, strict=True)
        ]
        return self._ranked(live, self.num_return_sequences if n is None else n)

    def _hypothesis(self, candidate: BeamCandidate, length: int) -> BeamHypothesis:
        token_ids = (*self.beam_token_ids[candidate.parent], candidate.token_id)
        score = self._penalised(candidate.score, length)
        return BeamHypothesis(token_ids, score, finished=candidate.token_id in self.eos_token_ids)

    def _ranked(self, new: list[BeamHypothesis], n: int) -> tuple[BeamHypothesis, ...]:
        """Return the best ``n`` of the hypotheses and ``new``; older ones precede equal ones."""
        return tuple(sorted([*self.hypotheses, *new], key=lambda hypothesis: -hypothesis.score)[:n])

    def _is_done(self, live: Sequence[BeamCandidate], length: int) -> bool:
        if not live:
            return True
        if len(self.hypotheses) < self.beam_width:
            return False
        final_length = self.max_new_tokens if self.early_stopping == "never" and self.length_penalty > 0 else length
        return self.early_stopping is True or self._penalised(live[0].score, final_length) <= self.hypotheses[-1].score

    def _penalised(self, score: float, length: int) -> float:
        """Return score / length ** length_penalty, without overflow for extreme penalties."""
        exponent = -self.length_penalty * math.log(length)
        return score * length**-self.length_penalty if exponent < 600 else score * math.exp(600)
