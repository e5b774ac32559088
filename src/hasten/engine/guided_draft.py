"""``guided_draft``: the draft of a sequence that its request's guide allows."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Items
from dataclasses import replace

import torch

from hasten.core.draft import NO_DRAFT, Draft
from hasten.engine.sampling_rows import draft_path
from hasten.sampling.guides.base import TokenGuide
from hasten.sampling.processors.guided_tokens import allowed_tokens
from hasten.scheduling.sequence import Sequence
from hasten.speculative.cost_model import CostModel
from hasten.speculative.policy import MARGIN

log = logging.getLogger(__name__)

MAX_FORCED_TOKENS = 32  # of a step: they are certain to be accepted, but the other requests wait for them
# Every row finds all forced tokens after it anew, in about 1 us per token: the longer a forced text is, the fewer rows take part.
_MAX_FOUND_TOKENS = 2_000


def is_forced(draft: Draft) -> bool:
    """Return whether a draft consists of forced tokens."""
    return draft.acceptance_probs[-1:] == (1.0,)


def truncate_forced(drafts: Items[Draft], costs: CostModel | None) -> list[Draft]:
    """Return the drafts of all sequences with as many forced tokens as pay; none without a cost model.

    Where a step is bound by arithmetic, a forced token takes as long in a draft as in a step of its own, and other requests wait.
    """
    if costs is None:
        return [NO_DRAFT if is_forced(draft) else draft for draft in drafts]
    counts = costs.allocate([draft.acceptance_probs for draft in drafts], 0.0, MARGIN)
    return [draft.truncate(count) if is_forced(draft) else draft for draft, count in zip(drafts, counts, strict=True)]


def guided_draft(guide: TokenGuide | None, sequence: Sequence) -> Draft:
    """Return the forced tokens as a chain, or else the allowed nodes of the sequence's draft.

    Without a guide, all nodes are. A guide that fails gives no draft: the next step finds its error.
    """
    if guide is None:
        return sequence.draft
    output = sequence.token_ids[sequence.request.num_initial_tokens :]
    try:
        if forced := guide.forced_tokens(output):
            chain = Draft.chain(forced[: min(MAX_FORCED_TOKENS, _MAX_FOUND_TOKENS // len(forced))])
            return replace(chain, acceptance_probs=(1.0,) * len(chain))
        return _allowed(guide, output, sequence.draft, sequence.request.eos_token_ids) if sequence.draft else NO_DRAFT
    except Exception:
        log.debug("request %s: its guide fails", sequence.request.request_id, exc_info=True)
        return NO_DRAFT


def _allowed(guide: TokenGuide, output: list[int], draft: Draft, eos_token_ids: tuple[int, ...]) -> Draft:
    """Return the nodes that are allowed and no end token, after which a guide has no state."""
    if draft.is_chain:
        end = next((i for i, token_id in enumerate(draft.token_ids) if token_id in eos_token_ids), len(draft))
        allowed = draft.truncate(guide.num_allowed(output, draft.token_ids[:end]))
        return allowed if allowed.draft_probs is None else _conditioned(guide, output, allowed, eos_token_ids)
    depths = draft.depths
    kept: list[int] = []
    for node, parent in enumerate(draft.parents):
        is_reached = (parent < 0 or parent in kept) and draft.token_ids[node] not in eos_token_ids
        if is_reached and guide.num_allowed(output, draft_path(draft, node)) == depths[node]:
            kept.append(node)
    return draft.select(kept)


def _conditioned(guide: TokenGuide, output: list[int], draft: Draft, eos_token_ids: tuple[int, ...]) -> Draft:
    """Return a chain with the distributions that its tokens have, given that the guide let them pass.

    Rejection sampling needs them: with the drafter's own, the tokens that were dropped would count as never drafted.
    """
    assert draft.draft_probs is not None
    draft_probs = []
    for node, draft_prob_V in enumerate(draft.draft_probs):
        tokens = [*output, *draft.token_ids[:node]]
        is_kept_V = torch.zeros(len(draft_prob_V), dtype=torch.bool, device=draft_prob_V.device)
        if forced := guide.forced_tokens(tokens):
            is_kept_V[forced[0]] = True
        elif (mask_W := guide.mask(tokens)) is not None:
            is_kept_V = torch.from_numpy(allowed_tokens(mask_W, len(draft_prob_V))).to(draft_prob_V.device)
        else:
            is_kept_V.fill_(True)
        is_kept_V[list(eos_token_ids)] = False
        kept_V = draft_prob_V * is_kept_V
        draft_probs.append(kept_V / kept_V.sum())
    return replace(draft, draft_probs=tuple(draft_probs))
