"""The contract of a search: a rule that decides, step by step, which lines of tokens of one request live on.

It knows no model, no KV cache and no tensor. The engine brings the best continuations of all live beams, the search says
which of them live::

    live beams        candidates, best first            BeamStep
    0: a b      ──►   (0, c, -1.2) (1, eos, -1.3)  ──►  beams (0, c) (0, d)   0 keeps its keys and values, a fork takes d
    1: a x            (0, d, -1.7) (1, y, -2.0)         ended (1, eos)        1 has no continuation: it dies
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Candidate:
    """A live beam and one token more."""

    parent: int  # position among the live beams
    token_id: int
    score: float  # the parent's score plus the processed log-probability of the token


@dataclass(frozen=True, slots=True)
class BeamStep:
    """What became of the live beams.

    The first continuation of a parent keeps its keys and values, each further one is a fork; a parent without one dies.
    """

    beams: tuple[Candidate, ...]  # the live beams from now on, best first; empty when the search is done
    ended: tuple[Candidate, ...]  # became hypotheses in this step, best first
    done: bool


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """An answer of the search. ``token_ids`` holds the ending token too."""

    token_ids: tuple[int, ...]
    score: float  # what the search ranks by
    finished: bool  # met an ending token; False: cut by the length limit, or still running


class Search(Protocol):
    """One request's search. It starts with one live beam: the prompt, with score 0."""

    @property
    def done(self) -> bool: ...

    @property
    def beam_scores(self) -> tuple[float, ...]:
        """The score of each live beam, in order: what ``Candidate.score`` adds to."""
        ...

    @property
    def num_candidates(self) -> int:
        """How many candidates ``advance`` needs; fewer only where no more tokens are allowed."""
        ...

    def advance(self, candidates: Sequence[Candidate]) -> BeamStep:
        """Takes one step, and changes the search. ``candidates`` are the best over all live beams, best first."""
        ...

    def best(self, n: int | None = None) -> tuple[Hypothesis, ...]:
        """The best ``n`` answers (None: as many as the request returns), best first. Changes nothing."""
        ...
