"""One step of beam search: score candidates, advance the search, fork or drop sequences."""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.core.request_fault import NO_TOKEN
from hasten.core.result import Continuation
from hasten.engine.request_state import RequestState
from hasten.engine.sampling_rows import sampling_row
from hasten.engine.step_outcome import NOT_FINITE, StepOutcome
from hasten.sampling.row import SamplingRow
from hasten.sampling.sampler import Sampler, rows_are_finite
from hasten.scheduling.sequence import Sequence
from hasten.search.beam import BeamStep
from hasten.search.candidates import best_candidates


def advance_beams(
    sampler: Sampler, logits_RV: Tensor, rows: list[tuple[int, Sequence]], state: RequestState, outcome: StepOutcome
) -> None:
    """Advance the search of one request. ``rows``: (row of the logits, sequence) of each live beam.

    Mutates ``state``, its search and ``outcome``.
    """
    search = state.search
    assert search is not None
    rows = sorted(rows, key=lambda row: row[1].index)
    sequences = [sequence for _, sequence in rows]
    logits_BV = logits_RV[torch.tensor([index for index, _ in rows], dtype=torch.int64, device=logits_RV.device)]
    if not all(rows_are_finite(logits_BV)):
        outcome.fail(state, sequences, NOT_FINITE, corrupted=True)
        return
    views = [sampling_row(sequence, sequence.index, state.guide) for sequence in sequences]
    parents = search.beam_token_ids
    candidates = best_candidates(sampler.beam_logprobs(logits_BV, views), search.beam_scores, search.num_candidates)
    if not candidates:
        outcome.fail(state, sequences, (None if state.guide is None else state.guide.failure) or NO_TOKEN)
        return
    step = search.advance(candidates)
    if state.request.params.logprobs is not None:
        _record_logprobs(sampler, logits_BV, views, parents, step, state)
    if step.done:
        state.finish_beam_search()
        outcome.dropped += [sequence.id for sequence in sequences]
        outcome.updated[state.request.request_id] = list(state.completions)
        return
    kept = [sequences[beam.parent].id for beam in step.beams]
    for index, (parent, beam) in enumerate(zip(kept, step.beams, strict=True)):
        outcome.continuations.append(Continuation(parent, (beam.token_id,), index=index))
    outcome.dropped += [sequence.id for sequence in sequences if sequence.id not in kept]


def _record_logprobs(
    sampler: Sampler,
    logits_BV: Tensor,
    views: list[SamplingRow],
    parents: tuple[tuple[int, ...], ...],
    step: BeamStep,
    state: RequestState,
) -> None:
    """Keep the raw log-probabilities of live beams, and of hypotheses that the search still holds."""
    assert state.search is not None
    extended = [*step.beams, *step.ended]
    parent_index = [candidate.parent for candidate in extended]
    rows = logits_BV[torch.tensor(parent_index, dtype=torch.int64, device=logits_BV.device)]
    logprobs = sampler.logprobs(rows, [views[i] for i in parent_index], [candidate.token_id for candidate in extended])
    held = {hypothesis.token_ids for hypothesis in state.search.hypotheses}
    before = state.beam_logprobs
    state.beam_logprobs = {token_ids: own for token_ids, own in before.items() if token_ids in held}
    for i, candidate in enumerate(extended):
        parent = parents[candidate.parent]
        state.beam_logprobs[(*parent, candidate.token_id)] = (*before.get(parent, ()), logprobs[i])
