"""Draft model: a smaller model of the same vocabulary drafts (Leviathan et al., 2022).

arXiv 2211.17192; Chen et al., 2023, arXiv 2302.01318.

Each call extends the draft by the model's own choice. For greedy requests the alternatives of that position are drafted beside it:
they cost rows of the verifying step and no call. The draft model samples with the noise of the target's positions. Both models
sample the same token wherever they agree well enough, at any temperature (arXiv 2408.07978).

Its keys and values lie in KV blocks of its own: accepted tokens stay, rejected ones are overwritten. It drafts less where blocks
or the token budget of a step are short.

Shape suffixes: R rows · D draft vocabulary · V vocabulary · K candidates.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from hasten.core.concat_view import ConcatView
from hasten.core.draft import Draft
from hasten.core.plan import BlockCopy, RowPlan, Runner, StepPlan
from hasten.kv.cache_manager import KvCacheManager
from hasten.kv.prefix_hash import cache_salt
from hasten.sampling.row import SamplingRow
from hasten.sampling.row_tensors import select_rows
from hasten.sampling.sampler import Sampler
from hasten.speculative.candidates import top_candidates
from hasten.speculative.cost_model import CostModel
from hasten.speculative.draft_tree import RANKS
from hasten.speculative.draft_vocabulary import DraftVocabulary
from hasten.speculative.drafters.base import DraftRequest, Expansion, ModelDrafter, TargetOutput
from hasten.speculative.policy import TreeExpansion

SAMPLED_PRIOR = 0.9  # acceptance probability of a sampled draft token, until outcomes are known
MIN_PREFILL = 32  # tokens: the time of shorter reads is that of a draft call


@dataclass(slots=True)
class DraftKvState:
    """The tokens of one sequence whose keys and values the draft model has computed."""

    token_ids: list[int] = field(default_factory=list)
    num_accepted: int = 0  # leading tokens that the sequence has

    def truncate(self, token_ids: Sequence[int]) -> None:
        """Drop the draft tokens that the sequence did not take."""
        kept = self.num_accepted
        while kept < min(len(self.token_ids), len(token_ids)) and self.token_ids[kept] == token_ids[kept]:
            kept += 1
        del self.token_ids[kept:]
        self.num_accepted = kept


@dataclass(slots=True, eq=False)
class _Expansion(Expansion):
    kv_state: DraftKvState
    token_ids: list[int] = field(default_factory=list)  # the chain of the model's own choices
    draft_probs: list[Tensor] = field(default_factory=list)  # what they were sampled from, for rejection sampling

    @property
    def uses_rejection(self) -> bool:
        """Whether acceptance weighs draft tokens by the distribution that they were sampled from."""
        params = self.request.request.params
        return params.acceptance == "rejection" and not params.exact

    @property
    def num_tokens(self) -> int:
        return len(self.request.token_ids) + len(self.token_ids)

    def uncomputed(self, count: int) -> list[int]:
        """Return the first ``count`` tokens without keys and values."""
        start, length = len(self.kv_state.token_ids), len(self.request.token_ids)
        if start >= length:
            return self.token_ids[start - length :][:count]
        return [*self.request.token_ids[start : start + count], *self.token_ids][:count]

    def sampling_row(self) -> SamplingRow:
        request = self.request.request
        token_ids = ConcatView(self.request.token_ids, self.token_ids)
        # Rejection sampling uses the position's noise for its accept decisions, so the draft needs noise of its own.
        index = -2 - self.request.output_index if self.uses_rejection else self.request.output_index
        return SamplingRow(request.params, token_ids, len(request.prompt_token_ids), request.eos_token_ids, index)

    def extend(self, choices: Sequence[tuple[int, float]], source: str) -> None:
        """Add the first choice to the chain, and the others beside it."""
        self.token_ids.append(choices[0][0])
        self.tree.frontier = [self.tree.add_choices(self.tree.frontier[0], choices, source)[0]]


class DraftModel(ModelDrafter):
    def __init__(
        self,
        runner: Runner,
        kv: KvCacheManager,
        sampler: Sampler,
        *,
        costs: CostModel,
        num_tokens: int = 8,
        max_depth: int = 5,
        max_num_batched_tokens: int,
        max_positions: int,
        vocabulary: DraftVocabulary | None = None,
    ) -> None:
        """``costs`` of the steps that verify. ``num_tokens`` and ``max_depth`` bound a draft.

        ``max_num_batched_tokens`` bounds one call. Nothing past ``max_positions`` is computed. ``vocabulary``: the tokens of the
        model's logits; None: all of them.
        """
        self._runner, self._kv, self._sampler, self._vocabulary = runner, kv, sampler, vocabulary
        self.num_tokens, self._max_depth = num_tokens, max_depth
        self._max_num_batched_tokens, self._max_positions = max_num_batched_tokens, max_positions
        self._kv_states: dict[int, DraftKvState] = {}
        self._expansion = TreeExpansion(costs)

    @property
    def aux_layer_indices(self) -> tuple[int, ...]:
        return ()

    @property
    def draft_lengths(self) -> tuple[int, ...]:
        return (1, 2, 3, 4, 6, 8, 12)

    def round_seconds(self, batch_size: int, num_tokens: int) -> float | None:
        return self._expansion.draft_costs.round_seconds(batch_size, min(num_tokens, self._max_depth))

    def prefill_seconds(self, requests: Sequence[DraftRequest]) -> float:
        unread = 0
        for request in requests:
            state = self._kv_states.get(request.sequence_id)
            # Every round begins with two: the last token, and an accepted draft token of the last call.
            unread += max(0, len(request.token_ids) - (len(state.token_ids) if state else 0) - 2)
        return self._expansion.draft_costs.prefill_seconds(unread)

    def observe(self, requests: Sequence[DraftRequest], output: TargetOutput) -> None:
        alive = {request.sequence_id for request in requests}
        for sequence_id in [known for known in self._kv_states if known not in alive]:
            self._kv.close(sequence_id)
            del self._kv_states[sequence_id]

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        self._expansion.record_acceptance(requests)
        states = [(request, self._kv_state(request)) for request in requests if request.max_draft_tokens]
        expansions = [_Expansion(r, self._expansion.new_tree(r), state) for r, state in states if state is not None]
        num_calls = self._expansion.expand(expansions, self.num_tokens, min(self.num_tokens, self._max_depth), self._advance)
        # Rejection sampling needs the whole chain: a token that is left out for its low probability would bias the output.
        chains = {e.request.sequence_id: Draft.chain(e.token_ids, tuple(e.draft_probs)) for e in expansions if e.uses_rejection}
        others = [request for request in requests if request.sequence_id not in chains]
        selected = dict(
            zip((r.sequence_id for r in others), self._expansion.drafts(others, self.num_tokens, num_calls), strict=True)
        )
        return [(chains | selected)[request.sequence_id] for request in requests]

    def _kv_state(self, request: DraftRequest) -> DraftKvState | None:
        """Return a sequence's state without rejected tokens; None while another computes its prefix."""
        state = self._kv_states.get(request.sequence_id)
        if state is not None:
            state.truncate(request.token_ids)
            return state
        salt = cache_salt(request.request.cache_salt, None)
        hashes = self._kv.block_hashes(salt, request.token_ids)
        if self._kv.prefix_in_flight(hashes):
            return None
        num_cached = self._kv.open(request.sequence_id, salt, hashes)
        state = self._kv_states[request.sequence_id] = DraftKvState(list(request.token_ids[:num_cached]), num_cached)
        return state

    def _advance(self, expansions: list[_Expansion]) -> list[_Expansion] | None:
        """Run one step of the model. Return the expansions that may go on; None if there was no room for any."""
        begin = time.perf_counter()
        rows: list[RowPlan] = []
        copies: list[BlockCopy] = []
        planned: list[_Expansion] = []
        budget = self._max_num_batched_tokens
        for expansion in expansions:
            start, sequence_id = len(expansion.kv_state.token_ids), expansion.request.sequence_id
            count = min(expansion.num_tokens - start, budget)
            if count == 0 or expansion.num_tokens > self._max_positions:
                continue
            reserved = self._kv.reserve(sequence_id, start, start + count)
            if reserved is None:
                continue
            reads_all = start + count == expansion.num_tokens
            token_ids = tuple(expansion.uncomputed(count))
            rows.append(RowPlan(sequence_id, start, token_ids, self._kv.block_tables(sequence_id), int(reads_all)))
            copies += reserved
            planned.append(expansion)
            budget -= count
        if not rows:
            return None
        logits_RD = self._runner.run(StepPlan(tuple(rows), tuple(copies))).logits
        for expansion, row in zip(planned, rows, strict=True):
            state = expansion.kv_state
            state.token_ids += row.token_ids
            state.num_accepted = min(len(state.token_ids), len(expansion.request.token_ids))
            self._kv.commit(row.sequence_id, expansion.request.token_ids, state.num_accepted)
        ended = self._extend([e for e, row in zip(planned, rows, strict=True) if row.num_logits], logits_RD)
        num_tokens, seconds = self._max_num_batched_tokens - budget, time.perf_counter() - begin
        if num_tokens > 2 * len(rows) + MIN_PREFILL:
            self._expansion.draft_costs.record_prefill(num_tokens, seconds)
        else:
            self._expansion.draft_costs.record(len(rows), seconds)
        return [expansion for expansion in planned if expansion not in ended]

    def _extend(self, expansions: Sequence[_Expansion], logits_RD: Tensor) -> set[_Expansion]:
        """Extend each draft by one token. Return those for which no token is allowed."""
        candidates, sampled = self._candidates(expansions, logits_RD), self._sampled(expansions, logits_RD)
        ended = set()
        for i, expansion in enumerate(expansions):
            choices = candidates.get(i, [])
            token_id = sampled[i] if i in sampled else choices[0][0]
            if token_id is None:
                ended.add(expansion)
            elif choices and choices[0][0] == token_id:
                expansion.extend(choices, "greedy")
            else:
                expansion.extend([(token_id, SAMPLED_PRIOR)], "sampled")
        return ended

    def _candidates(self, expansions: Sequence[_Expansion], logits_RD: Tensor) -> dict[int, list[tuple[int, float]]]:
        """Return what greedy requests may take, best first, with probabilities. Key: index of the expansion."""
        index = [i for i, expansion in enumerate(expansions) if expansion.request.request.params.greedy]
        if not index:
            return {}
        to_token_ids = (lambda columns: columns) if self._vocabulary is None else self._vocabulary.token_ids
        requests = [expansions[i].request for i in index]
        tokens_RK, probs_RK = top_candidates(select_rows(logits_RD, index), requests, [0] * len(index), to_token_ids, RANKS)
        rows = zip(index, tokens_RK.tolist(), probs_RK.tolist(), strict=True)
        return {i: list(zip(tokens, probs, strict=True)) for i, tokens, probs in rows}

    def _sampled(self, expansions: Sequence[_Expansion], logits_RD: Tensor) -> dict[int, int | None]:
        """Return the tokens of requests that sample, or whose masks, bias or penalties change the logits."""
        params = [expansion.request.request.params for expansion in expansions]
        index = [i for i, own in enumerate(params) if not own.greedy or self._sampler.needs_processors(own)]
        if not index:
            return {}
        some_RD = select_rows(logits_RD, index)
        logits_RV = some_RD if self._vocabulary is None else self._vocabulary.scatter(some_RD)
        rows = [expansions[i].sampling_row() for i in index]
        tokens = self._sampler.sample_token_ids(logits_RV, rows)
        for row, i in enumerate(index):
            if expansions[i].uses_rejection and tokens[row] is not None:
                expansions[i].draft_probs += self._sampler.probabilities(logits_RV[row : row + 1], rows[row : row + 1])
        return dict(zip(index, tokens, strict=True))
