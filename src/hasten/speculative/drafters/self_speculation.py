"""Self-speculation: the model's first layers draft, and all layers verify.

LayerSkip (Elhoushi et al., 2024, arXiv 2404.16710). There is no second model and no second KV cache. Verification reuses the keys,
values and hidden states of the drafting layers.

Shape suffixes: R rows · V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from hasten.core.draft import Draft
from hasten.ops.torch.inference import inference
from hasten.speculative.candidates import top_candidates
from hasten.speculative.cost_model import CostModel
from hasten.speculative.drafters.base import DraftRequest, Expansion, ModelDrafter, TargetOutput
from hasten.speculative.policy import TreeExpansion


def best_exit_layer(agreement: Mapping[int, float], cost: Callable[[int], float], max_tokens: int = 6) -> int:
    """Return the exit layer whose drafts should give the most tokens per second.

    ``agreement``: exit layer -> share of tokens on which it agrees with the full model. ``cost``: exit layer -> cost of a draft
    token as a share of a plain step. Verification reuses what drafting computed, so a round costs one step and its draft tokens.
    """

    def speed_up(layer: int) -> float:
        rate, share = agreement[layer], cost(layer)
        return max(sum(rate**i for i in range(n + 1)) / (1 + n * share) for n in range(1, max_tokens + 1))

    return max(agreement, key=speed_up)


class SelfDraftRunner(Protocol):
    """The drafting layers, over the KV cache of the full model."""

    def begin_round(self) -> None:
        """Drop what the last round has kept for verification."""
        ...

    def token_ids(self, columns: Tensor) -> Tensor:
        """Map columns of the logits to the target's token ids."""
        ...

    def step(self, tokens: Sequence[tuple[int, int, int]]) -> tuple[list[int], Tensor]:
        """Compute (sequence id, position, token id) triples. Earlier positions are computed already.

        Return the indices of those for which there were KV blocks, and their logits [R, V], float32.
        """
        ...


class SelfSpeculation(ModelDrafter):
    """Drafts chains: a branching row could not reuse the hidden states of its draft."""

    def __init__(self, runner: SelfDraftRunner, *, costs: CostModel, num_tokens: int = 4) -> None:
        """``costs`` of the steps that verify."""
        self._runner, self.num_tokens, self._expansion = runner, num_tokens, TreeExpansion(costs)

    @property
    def aux_layer_indices(self) -> tuple[int, ...]:
        return ()

    @property
    def draft_lengths(self) -> tuple[int, ...]:
        return (1, 2, 3, 4, 6)

    def round_seconds(self, batch_size: int, num_tokens: int) -> float | None:
        return self._expansion.draft_costs.round_seconds(batch_size, num_tokens)

    def prefill_seconds(self, requests: Sequence[DraftRequest]) -> float:
        return 0.0

    def observe(self, requests: Sequence[DraftRequest], output: TargetOutput) -> None:
        self._runner.begin_round()

    @inference()
    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        self._expansion.record_acceptance(requests)
        expansions = [Expansion(r, self._expansion.new_tree(r)) for r in requests if r.max_draft_tokens]
        num_calls = self._expansion.expand(expansions, self.num_tokens, self.num_tokens, self._advance)
        return self._expansion.drafts(requests, self.num_tokens, num_calls)

    def _advance(self, expansions: list[Expansion]) -> list[Expansion] | None:
        """Add one token to each chain for which there are KV blocks."""
        begin, depth = time.perf_counter(), expansions[0].tree.frontier_depth
        computed, logits_RV = self._runner.step([_next_input(expansion) for expansion in expansions])
        if not computed:
            return None
        advanced = [expansions[i] for i in computed]
        requests = [expansion.request for expansion in advanced]
        token_R1, prob_R1 = top_candidates(logits_RV, requests, [depth] * len(requests), self._runner.token_ids, 1)
        for expansion, token_id, prob in zip(advanced, token_R1[:, 0].tolist(), prob_R1[:, 0].tolist(), strict=True):
            tree, greedy = expansion.tree, expansion.request.request.params.greedy
            tree.frontier = list(tree.add_choices(tree.frontier[0], [(token_id, prob)], greedy))
        self._expansion.draft_costs.record(len(advanced), time.perf_counter() - begin)
        return advanced


def _next_input(expansion: Expansion) -> tuple[int, int, int]:
    """Return the (sequence id, position, token id) to compute for one more draft token."""
    request, tree, node = expansion.request, expansion.tree, expansion.tree.frontier[0]
    token_id = request.token_ids[-1] if node < 0 else tree.nodes[node].token_id
    return request.sequence_id, request.last_position + tree.frontier_depth, token_id
