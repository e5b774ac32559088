"""Beam search: of all continuations keep the ``beam_width`` best, and collect the lines that end (Lowerre, 1976).

The rules are those of ``generate(num_beams=...)`` in transformers, so sequences and scores are the same:

- A line that ends is a hypothesis only if it is among the ``beam_width`` best candidates of its step. Its score is its
  log-probability over ``length ** length_penalty``, where the length counts new tokens, the ending one included (Wu et al., 2016).
- The best ``beam_width`` candidates that do not end live on, so ``1 + number of ending tokens`` times ``beam_width`` are looked at.
- At ``max_new_tokens`` every line ends.
- The search is over when ``beam_width`` hypotheses are held and the best live beam, its score taken as final, would not beat the
  worst of them: at its present length, or with ``early_stopping="never"`` and a positive penalty at ``max_new_tokens``. With
  ``early_stopping=True`` holding ``beam_width`` of them is enough.

One difference: where fewer than ``beam_width`` lines are possible (a tiny vocabulary, nearly all tokens forbidden), transformers fills
up with lines of score about -1e9. Here there are then fewer beams and fewer answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from hasten.search.base import BeamStep, Candidate, Hypothesis


@dataclass(slots=True, kw_only=True)
class BeamSearch:
    """The state of one request's search: numbers and tuples of numbers."""

    beam_width: int
    length_penalty: float
    early_stopping: bool | Literal["never"]
    num_return_sequences: int
    eos_token_ids: tuple[int, ...]  # every token that ends a line, stop tokens included
    max_new_tokens: int

    done: bool = field(default=False, init=False)
    beam_scores: tuple[float, ...] = field(default=(0.0,), init=False)  # [live beam], best first
    beam_token_ids: tuple[tuple[int, ...], ...] = field(default=((),), init=False)  # new tokens of each live beam
    hypotheses: tuple[Hypothesis, ...] = field(default=(), init=False)  # best first, at most ``beam_width``

    def __post_init__(self) -> None:
        assert 1 <= self.num_return_sequences <= self.beam_width
        assert self.max_new_tokens >= 1
        self.eos_token_ids = tuple(dict.fromkeys(self.eos_token_ids))

    @property
    def num_candidates(self) -> int:
        return max(2, 1 + len(self.eos_token_ids)) * self.beam_width

    def advance(self, candidates: Sequence[Candidate]) -> BeamStep:
        """See ``Search.advance``. Without any candidate (all tokens are forbidden) the live beams become hypotheses as they are."""
        assert not self.done, "a search that is done was advanced"
        assert all(a.score >= b.score for a, b in pairwise(candidates)), "candidates must be best first"
        if not candidates:
            self.hypotheses, self.beam_token_ids, self.beam_scores, self.done = self.best(self.beam_width), (), (), True
            return BeamStep(beams=(), ended=(), done=True)
        length = len(self.beam_token_ids[0]) + 1
        at_limit = length == self.max_new_tokens
        ended: list[Candidate] = []
        living: list[Candidate] = []
        for rank, candidate in enumerate(candidates):
            if not at_limit and candidate.token_id not in self.eos_token_ids:
                living.append(candidate)
            elif rank < self.beam_width:
                ended.append(candidate)
        self.hypotheses = self._ranked([self._hypothesis(candidate, length) for candidate in ended], self.beam_width)
        beams = tuple(living[: self.beam_width])
        self.beam_token_ids = tuple((*self.beam_token_ids[beam.parent], beam.token_id) for beam in beams)
        self.beam_scores = tuple(beam.score for beam in beams)
        self.done = self._over(length)
        return BeamStep(beams=() if self.done else beams, ended=tuple(ended), done=self.done)

    def best(self, n: int | None = None) -> tuple[Hypothesis, ...]:
        """See ``Search.best``. Before the search is done, the live beams count with the score of their present length."""
        running: list[Hypothesis] = []
        if not self.done:
            for line, score in zip(self.beam_token_ids, self.beam_scores, strict=True):
                running.append(Hypothesis(line, self._penalised(score, max(1, len(line))), finished=False))
        return self._ranked(running, self.num_return_sequences if n is None else n)

    def _hypothesis(self, candidate: Candidate, length: int) -> Hypothesis:
        token_ids = (*self.beam_token_ids[candidate.parent], candidate.token_id)
        score = self._penalised(candidate.score, length)
        return Hypothesis(token_ids, score, finished=candidate.token_id in self.eos_token_ids)

    def _ranked(self, more: list[Hypothesis], n: int) -> tuple[Hypothesis, ...]:
        """The best ``n`` of the hypotheses held and of ``more``; of equal ones the older first."""
        return tuple(sorted([*self.hypotheses, *more], key=lambda hypothesis: -hypothesis.score)[:n])

    def _over(self, length: int) -> bool:
        if not self.beam_scores:
            return True
        if len(self.hypotheses) < self.beam_width:
            return False
        if self.early_stopping is True:
            return True
        reach = self.max_new_tokens if self.early_stopping == "never" and self.length_penalty > 0 else length
        return self._penalised(self.beam_scores[0], reach) <= self.hypotheses[-1].score

    def _penalised(self, score: float, length: int) -> float:
        """score / length ** length_penalty, without overflow for the most extreme penalties."""
        exponent = -self.length_penalty * math.log(length)
        return score * length**-self.length_penalty if exponent < 600 else score * math.exp(600)
