"""What to draft and what to verify: whatever gives the most tokens per second.

A draft token is worth verifying while its acceptance probability, over the time that it adds to the step, exceeds the step's token
rate (Leviathan et al., 2022, section 3.4, with measured costs). Where nothing pays, decoding is plain.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from hasten.core.draft import NO_DRAFT, Draft
from hasten.speculative.acceptance_calibration import AcceptanceCalibration
from hasten.speculative.cost_model import CostModel, DraftCostModel
from hasten.speculative.draft_tree import DraftTree
from hasten.speculative.drafters.base import Drafter, DraftRequest, E, ModelDrafter, TargetOutput

HORIZON = 256  # tokens: most answers end long before max_tokens
PROBE_SHARE, PROBE_TOKENS = 0.01, 2  # share of the time for drafters that do not seem to pay, and what they draft then
MARGIN = 1.1  # required gain over plain decoding: the cost is certain and the benefit an estimate
PRIOR, TEXT_DECAY, TEXT_PRIOR_WEIGHT = 0.5, 0.97, 2.0  # calibration of drafts without probabilities of their own
CURVE_UPDATE, TAIL_UPDATE = 0.05, 0.003  # how fast outcomes of drafts, or the lack of long ones, replace what was expected
LENGTH_BUCKETS, AGE_BUCKETS = (2, 4, 8), (8, 32)  # kinds of model-free drafts: by length and by output tokens so far


@dataclass(slots=True)
class TreeExpansion:
    """Expands the trees of one drafter as far as further calls may pay, and selects the nodes to verify."""

    costs: CostModel  # of the steps that verify
    draft_costs: DraftCostModel = field(default_factory=DraftCostModel)
    calibration: AcceptanceCalibration = field(default_factory=AcceptanceCalibration)
    _trees: dict[int, tuple[int, DraftTree]] = field(default_factory=dict)  # sequence id -> its length then, its tree

    def record_acceptance(self, requests: Sequence[DraftRequest]) -> None:
        """Count the outcomes of the last round's trees, and drop them all."""
        trees, self._trees = self._trees, {}
        for request in requests:
            if request.sequence_id in trees:
                length, tree = trees[request.sequence_id]
                tree.record_acceptance(request.token_ids[length:])

    def new_tree(self, request: DraftRequest) -> DraftTree:
        tree = DraftTree(self.calibration)
        self._trees[request.sequence_id] = len(request.token_ids), tree
        return tree

    def expand(self, expansions: Sequence[E], max_nodes: int, max_calls: int, advance: Callable[[list[E]], list[E] | None]) -> int:
        """Call ``advance`` with the expansions that may pay, and return how often. ``max_nodes``: verified.

        ``advance`` calls the drafter, records its time and returns what may go on; None where no call was possible.
        """
        active, num_calls = list(expansions), 0
        while active and num_calls < max_calls:
            call = self.draft_costs.seconds(len(active)) or 0.0
            trees = [expansion.tree for expansion in expansions]
            least = min_expand_probability(trees, max_nodes, self.costs, num_calls * call, call / len(active))
            for expansion in active:
                expansion.tree.prune_frontier(least)
            active = [e for e in active if e.tree.frontier and e.tree.frontier_depth < e.request.max_draft_tokens]
            advanced = advance(active) if active else None
            if advanced is None:
                break
            active, num_calls = advanced, num_calls + 1
        self.draft_costs.record_round(len(expansions), max_calls, num_calls)
        return num_calls

    def drafts(self, requests: Sequence[DraftRequest], max_nodes: int, num_calls: int) -> list[Draft]:
        """Return the selected nodes of each request's tree, after so many calls of the drafter."""
        trees = {r.sequence_id: self._trees[r.sequence_id][1] for r in requests if r.sequence_id in self._trees}
        draft_seconds = num_calls * (self.draft_costs.seconds(len(trees)) or 0.0)
        drafts = dict(zip(trees, select_nodes([*trees.values()], max_nodes, self.costs, draft_seconds), strict=True))
        return [drafts.get(request.sequence_id, NO_DRAFT) for request in requests]


def min_expand_probability(
    trees: Sequence[DraftTree], max_nodes: int, costs: CostModel, draft_seconds: float, call: float
) -> float:
    """Return the least path probability at which a ``call`` pays, if its child is always accepted."""
    probabilities = [[tree.nodes[node].acceptance_prob for node in tree.top_nodes(max_nodes)] for tree in trees]
    count, rate = costs.best_count(probabilities, draft_seconds)
    rows = len(trees) + count
    return rate * (costs.seconds(rows + 1) - costs.seconds(rows) + call)


def select_nodes(trees: Sequence[DraftTree], max_nodes: int, costs: CostModel, draft_seconds: float) -> list[Draft]:
    """Return up to ``max_nodes`` nodes of each tree: those that give the most tokens per second."""
    drafts = [tree.draft(tree.top_nodes(max_nodes)) for tree in trees]
    counts = costs.allocate([draft.acceptance_probs for draft in drafts], draft_seconds)
    return [draft.truncate(count) for draft, count in zip(drafts, counts, strict=True)]


class AutoDrafter:
    """Chooses a drafter and a draft length where that should pay. Model-free drafters always propose."""

    def __init__(
        self,
        model_free: Mapping[str, Drafter],
        model_based: Mapping[str, ModelDrafter],
        costs: CostModel,
        clock: Callable[[], float] = time.perf_counter,
        *,
        num_tokens: int | None = None,
    ) -> None:
        """``costs`` of the verifying steps. ``num_tokens``: longest draft; None: what pays."""
        self._model_free, self._model_based, self._costs, self._clock = model_free, model_based, costs, clock
        calibration = AcceptanceCalibration(TEXT_DECAY, TEXT_PRIOR_WEIGHT)
        self._scores = {name: TreeExpansion(costs, calibration=calibration) for name in (*model_free, *model_based)}
        self._curves: dict[str, list[float]] = {name: [] for name in model_based}  # [i]: acceptance rate of a draft's token i
        self._asked: dict[int, tuple[str, int, int, Draft]] = {}  # sequence id -> drafter, num_tokens, length then, draft
        self._budgets = dict.fromkeys(model_based, 0.0)  # seconds for probes
        self._lengths = {name: sorted({min(n, num_tokens or n) for n in d.draft_lengths}) for name, d in model_based.items()}
        self._last_step_tokens, self._last_end = 0, 0.0

    @property
    def aux_layer_indices(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(i for drafter in self._model_based.values() for i in drafter.aux_layer_indices))

    def propose(self, requests: Sequence[DraftRequest], output: TargetOutput) -> list[Draft]:
        if output.num_tokens == self._last_step_tokens > 0:  # else it was another step: a prompt, or drafts were cut
            seconds = self._clock() - self._last_end
            for name, budget in self._budgets.items():
                self._budgets[name] = min(budget + PROBE_SHARE / len(self._budgets) * seconds, seconds)
        for score in self._scores.values():
            score.record_acceptance(requests)
        for request in (r for r in requests if r.sequence_id in self._asked):
            self._record_outcome(request, *self._asked.pop(request.sequence_id))
        drafts = [NO_DRAFT] * len(requests)
        for name, drafter in self._model_free.items():
            drafts = _better(drafts, self._scored(name, requests, drafter.propose(requests, output)))
        for model in self._model_based.values():  # before its prefill cost is asked
            model.observe(requests, output)
        name, num_tokens, asked = self._choose(drafts, requests) if requests else ("", 0, requests)
        if num_tokens:
            proposed = self._ask(name, num_tokens, asked, is_probe=asked is not requests)
            drafts = _better(drafts, [proposed.get(request.sequence_id, NO_DRAFT) for request in requests])
        counts = self._costs.allocate([draft.acceptance_probs for draft in drafts], 0.0, MARGIN)
        self._last_step_tokens, self._last_end = len(requests) + sum(counts), self._clock()
        return [draft.truncate(count) for draft, count in zip(drafts, counts, strict=True)]

    def _scored(self, name: str, requests: Sequence[DraftRequest], drafts: Sequence[Draft]) -> list[Draft]:
        """Cut drafts at max_tokens, and give them acceptance probabilities where the drafter has none."""
        scored = []
        for request, uncut in zip(requests, drafts, strict=True):
            draft = uncut.truncate(len(uncut), request.max_draft_tokens)
            if draft and not draft.acceptance_probs:
                tree = self._scores[name].new_tree(request)
                kind = bisect_left(LENGTH_BUCKETS, len(draft)), bisect_left(AGE_BUCKETS, request.num_output_tokens + 1)
                key = (name, *kind) if name in self._model_free else name
                for i, (token_id, parent) in enumerate(zip(draft.token_ids, draft.parents, strict=True)):
                    tree.add(parent, token_id, ((key, "chain" if parent == i - 1 else "branch"), (key, i)), PRIOR)
                draft = replace(draft, acceptance_probs=tuple(accumulate((n.acceptance_prob for n in tree.nodes), min)))
            scored.append(draft)
        return scored

    def _ask(self, name: str, num_tokens: int, requests: Sequence[DraftRequest], *, is_probe: bool) -> dict[int, Draft]:
        drafter, begin = self._model_based[name], self._clock()
        drafter.num_tokens = num_tokens
        drafts = self._scored(name, requests, drafter.draft(requests))
        if is_probe:  # it pays for all that it had to read first
            self._budgets[name] -= self._clock() - begin
        self._asked = {r.sequence_id: (name, num_tokens, len(r.token_ids), d) for r, d in zip(requests, drafts, strict=True)}
        return dict(zip(self._asked, drafts, strict=True))

    def _record_outcome(self, request: DraftRequest, name: str, num_tokens: int, length: int, draft: Draft) -> None:
        tokens, path = request.token_ids[length:], draft.accepted_path(request.token_ids[length:])
        curve = self._curves[name] = self._expected(name, max(num_tokens, len(self._curves[name])))
        for i in range(min(num_tokens, request.max_draft_tokens + len(tokens))):  # what was not drafted counts as rejected
            if i >= len(draft) or len(path) < len(tokens) or draft.depths[i] <= len(path):
                curve[i] += CURVE_UPDATE * ((i in path) - curve[i])
        for i in range(num_tokens, len(curve)):  # what longer drafts were worth is forgotten slowly
            curve[i] += TAIL_UPDATE * (curve[0] * curve[i - 1] - curve[i])

    def _choose(self, drafts: Sequence[Draft], requests: Sequence[DraftRequest]) -> tuple[str, int, Sequence[DraftRequest]]:
        """Return which model drafter to ask, for how many tokens, of which requests (one: a probe)."""
        batch, remaining = len(requests), sum(min(HORIZON, request.max_draft_tokens + 1) for request in requests)
        free = [draft.acceptance_probs for draft in drafts]
        plain = max(self._costs.best_count(free, 0.0)[1], MARGIN * batch / self._costs.seconds(batch))
        best, chosen, num_tokens = plain, "", 0
        for name, drafter in self._model_based.items():
            rate, prefill = 0.0, drafter.prefill_seconds(requests)
            for length in self._lengths[name]:
                shorter, seconds = rate, drafter.round_seconds(batch, length)
                if seconds is None:  # never asked
                    break
                own = self._expected(name, length)
                rate = self._costs.best_count([max(own, probs, key=sum) for probs in free], seconds)[1]
                if rate < shorter:
                    break  # longer drafts are less likely still
                if rate > best and (not prefill or MARGIN * (remaining / rate + prefill) < remaining / plain):
                    best, chosen, num_tokens = rate, name, length
        for name, budget in self._budgets.items():
            if budget > 0 and name != chosen:
                self._budgets[name] -= self._costs.seconds(batch) * (1 - plain / best)  # what a step without the choice loses
                cheapest = min(requests, key=lambda request: self._model_based[name].prefill_seconds([request]))
                return name, min(PROBE_TOKENS, self._lengths[name][-1]), [cheapest]
        return chosen, num_tokens, requests

    def _expected(self, name: str, length: int) -> list[float]:
        """Return the expected acceptance probabilities of a draft; unknown ones fall as the first does."""
        curve = self._curves[name][:length]
        while len(curve) < length:
            curve.append(curve[0] * curve[-1] if curve else PRIOR)
        return curve


def _better(drafts: Sequence[Draft], others: Sequence[Draft]) -> list[Draft]:
    return [max(pair, key=lambda draft: sum(draft.acceptance_probs)) for pair in zip(drafts, others, strict=True)]
