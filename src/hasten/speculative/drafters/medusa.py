"""Medusa: heads on the last hidden state draft a tree (Cai et al., 2024, arXiv 2401.10774).

Each head predicts one position further, independently of the others' choices. The tree grows best first by the heads' calibrated
probabilities.

Shape suffixes: R rows · E hidden size · H heads · V vocabulary of the heads · K candidates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from heapq import heappop, heappush

import torch
from torch import Tensor

from hasten.core.draft import NO_DRAFT, Draft
from hasten.ops.torch.inference import inference
from hasten.speculative.candidates import top_candidates
from hasten.speculative.cost_model import CostModel
from hasten.speculative.draft_tree import RANKS, DraftTree
from hasten.speculative.drafters.base import NO_TARGET_OUTPUT, DraftRequest, ModelDrafter, TargetOutput
from hasten.speculative.policy import TreeExpansion


class Medusa(ModelDrafter):
    def __init__(
        self,
        logits: Callable[[Tensor], Tensor],
        token_ids: Callable[[Tensor], Tensor],
        *,
        costs: CostModel,
        layer: int,
        num_tokens: int = 16,
    ) -> None:
        """``logits``: hidden states after ``layer`` [R, E] -> [H, R, V].

        ``token_ids`` maps columns of the logits to the target's ids. ``costs`` of the steps that verify.
        """
        self._logits, self._token_ids, self._layer = logits, token_ids, layer
        self.num_tokens, self._expansion = num_tokens, TreeExpansion(costs)
        self._output = NO_TARGET_OUTPUT  # of the last step

    @property
    def aux_layer_indices(self) -> tuple[int, ...]:
        return (self._layer,)

    @property
    def draft_lengths(self) -> tuple[int, ...]:
        return (2, 4, 6, 8, 12, 16, 24)

    def round_seconds(self, batch_size: int, num_tokens: int) -> float | None:
        return self._expansion.draft_costs.seconds(batch_size)

    def prefill_seconds(self, requests: Sequence[DraftRequest]) -> float:
        return 0.0

    def observe(self, requests: Sequence[DraftRequest], output: TargetOutput) -> None:
        self._output = output

    @inference()
    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        begin, output = time.perf_counter(), self._output
        rows = {span.request.sequence_id: span.rows[-1] for span in output.spans}
        ready = [request for request in requests if request.sequence_id in rows and request.max_draft_tokens]
        if not ready:
            return [NO_DRAFT] * len(requests)
        rows_R = torch.tensor([rows[request.sequence_id] for request in ready], dtype=torch.int64, device="cpu")
        state_RE = output.aux_hidden_states[self._layer][rows_R]
        token_HRK, prob_HRK = self._candidates(self._logits(state_RE), ready)
        self._expansion.record_acceptance(requests)
        for row, request in enumerate(ready):
            _grow(self._expansion.new_tree(request), request, token_HRK[:, row], prob_HRK[:, row], self.num_tokens)
        self._expansion.draft_costs.record(len(ready), time.perf_counter() - begin)
        return self._expansion.drafts(requests, self.num_tokens, 1)

    def _candidates(self, logits_HRV: Tensor, requests: Sequence[DraftRequest]) -> tuple[Tensor, Tensor]:
        """Return the token ids that each request would sample, best first, and their probabilities. [H, R, K]"""
        num_heads, num_rows, _ = logits_HRV.shape
        offsets = [head for head in range(num_heads) for _ in range(num_rows)]  # head 0 predicts the next token
        token_NK, prob_NK = top_candidates(logits_HRV.flatten(0, 1), [*requests] * num_heads, offsets, self._token_ids, RANKS)
        shape = (num_heads, num_rows, -1)
        return token_NK.reshape(shape), prob_NK.reshape(shape)


def _grow(tree: DraftTree, request: DraftRequest, token_HK: Tensor, prob_HK: Tensor, max_nodes: int) -> None:
    """Expand the most likely node again and again, until the ``max_nodes`` best nodes are expanded."""
    choices = [list(zip(tokens, probs, strict=True)) for tokens, probs in zip(token_HK.tolist(), prob_HK.tolist(), strict=True)]
    queue = [(-1.0, -1, 0)]  # (-acceptance probability, node, its depth)
    for _ in range(1 + max_nodes):
        if not queue:
            return
        _, parent, depth = heappop(queue)
        if depth < len(choices):
            for node in tree.add_choices(parent, choices[depth], (request.request.params.greedy, depth)):
                heappush(queue, (-tree.nodes[node].acceptance_prob, node, depth + 1))
