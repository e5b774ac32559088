"""Sampling and verification: accept each draft along the path that the target's samples follow.

Every row of a draft is sampled, as plain decoding would sample its position. A draft token is accepted while it equals the sample
before it, so a sequence without a draft is the same case with one row. Requests with lossy or distribution-level acceptance ask
their rule instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from hasten.core.draft import NO_DRAFT, Draft
from hasten.core.request_fault import NO_TOKEN
from hasten.core.result import DraftOutcome, TokenOrigin
from hasten.engine.request_state import RequestState
from hasten.engine.sampling_rows import NO_NODE, SampledRow, logits_of, sampling_row
from hasten.engine.step_outcome import NOT_FINITE, StepOutcome
from hasten.sampling.row import SamplingRow
from hasten.sampling.sampler import SampledToken, Sampler, rows_are_finite
from hasten.speculative.acceptance import acceptance_rule
from hasten.speculative.acceptance.base import DraftToken
from hasten.speculative.acceptance.counter_rng import CounterRng


def sample_and_verify(
    sampler: Sampler, logits_RV: Tensor, rows: list[SampledRow], states: Mapping[str, RequestState], outcome: StepOutcome
) -> None:
    """Sample every row and accept the tokens on the path.

    ``rows`` of one sequence are adjacent, parents before children.
    Mutates the completions, the states and ``outcome``. A row without a usable token, or one that raises, fails its own request
    alone.
    """
    try:
        row_logits_RV = logits_of(logits_RV, rows)
        views = [sampling_row(row.sequence, row.completion.index, row.completion.guide, row.node) for row in rows]
        tokens = sampler.sample(row_logits_RV, views)
    except Exception as error:
        _sample_alone(sampler, logits_RV, rows, states, outcome, error)
        return
    next_node: int | None = NO_NODE  # the node that the accepted path has reached; None: it has ended
    for i, (row, sampled) in enumerate(zip(rows, tokens, strict=True)):
        state = states[row.sequence.request.request_id]
        next_node = NO_NODE if row.node == NO_NODE else next_node
        if state.error is not None or row.node != next_node:
            continue
        try:
            if sampled is None:
                finite = all(rows_are_finite(row_logits_RV[i : i + 1]))
                sequences = row.sequence.scheduled_request.sequences
                guide = row.completion.guide
                no_token = (None if guide is None else guide.failure) or NO_TOKEN
                outcome.fail(state, sequences, no_token if finite else NOT_FINITE, corrupted=not finite)
                continue
            draft = None if row.sequence.draft is NO_DRAFT else row.sequence.draft or None  # faster to test than an empty draft
            token = sampled
            if draft and not views[i].params.exact:
                token = _apply_rule(sampler, row_logits_RV[i : i + 1], views[i], _children(draft, row.node), sampled)
            child = draft.find_child(row.node, token.token_id) if draft else None
            finish = row.completion.push(token.token_id, token.logprob, _origin(draft, row.node, child), row.exit_layer)
            outcome.accept(row.sequence, row.completion, token.token_id, finish, drafted=row.node != NO_NODE)
            next_node = child if finish is None else None
            if draft and next_node is None:
                num_accepted = len(outcome.continuations[-1].token_ids) - (child is None)
                draft_outcome = DraftOutcome(len(draft), max(draft.depths), num_accepted)
                outcome.draft_outcomes.append(draft_outcome)
                state.record_draft(draft_outcome)
        except Exception as error:
            outcome.fail_by_exception(state, row.sequence.scheduled_request.sequences, error)


def _sample_alone(
    sampler: Sampler,
    logits_RV: Tensor,
    rows: list[SampledRow],
    states: Mapping[str, RequestState],
    outcome: StepOutcome,
    error: Exception,
) -> None:
    """Sample the rows of each request alone, because sampling all of them raised ``error``.

    The request that raises again fails.
    """
    rows_of: dict[str, list[SampledRow]] = {}
    for row in rows:
        rows_of.setdefault(row.sequence.request.request_id, []).append(row)
    if len(rows_of) == 1:
        outcome.fail_by_exception(states[next(iter(rows_of))], rows[0].sequence.scheduled_request.sequences, error)
        return
    for own in rows_of.values():
        sample_and_verify(sampler, logits_RV, own, states, outcome)


def _apply_rule(
    sampler: Sampler, logits_1V: Tensor, view: SamplingRow, draft_tokens: Sequence[DraftToken], sampled: SampledToken
) -> SampledToken:
    """Return the token that the request's acceptance rule chooses; the sample where nothing was drafted."""
    if not draft_tokens:
        return sampled
    (p_V,) = sampler.probabilities(logits_1V, [view])
    token_id = acceptance_rule(view.params).choose(p_V, draft_tokens, CounterRng(view))
    return SampledToken(token_id, sampler.logprobs(logits_1V, [view], [token_id]).get(0))


def _children(draft: Draft, node: int) -> list[DraftToken]:
    children = [i for i, parent in enumerate(draft.parents) if parent == node]
    return [DraftToken(draft.token_ids[i], draft.draft_probs[i] if draft.draft_probs else None) for i in children]


def _origin(draft: Draft | None, node: int, child: int | None) -> TokenOrigin:
    """Return the origin of the token after ``node``. ``child``: its draft node, if it was drafted."""
    if not draft:
        return TokenOrigin.STEP
    if child is not None:
        return TokenOrigin.DRAFT
    return TokenOrigin.CORRECTION if node in draft.parents else TokenOrigin.BONUS
