"""``output_logprobs``: log-probabilities of the output tokens of a batch.

One block of logits is in memory at a time.

Shape suffixes: B sequences · S tokens per sequence · R output tokens · E hidden size · V vocabulary.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hasten.training.corpus import Batch
from hasten.training.lm_head_loss import BLOCK_ELEMENTS
from hasten.training.predicted_rows import PredictedRows, predicted_rows
from hasten.training.target_model import HiddenStates


class LanguageModel(Protocol):
    """A trainable model, or a frozen one."""

    @property
    def lm_head_VE(self) -> Tensor: ...

    def hidden_states(self, ids_BS: Tensor) -> HiddenStates: ...

    def normed(self, states: HiddenStates) -> Tensor: ...


def output_hidden(model: LanguageModel, batch: Batch) -> tuple[Tensor, PredictedRows]:
    """Return the lm_head's input before each output token, [R, E], and these tokens."""
    rows = predicted_rows(batch)
    return model.normed(model.hidden_states(batch.ids_BS))[rows.rows_R], rows


def output_logprobs(model: LanguageModel, batch: Batch, temperature: float = 1.0) -> Tensor:
    """Return the log-probability of each output token, float32 [R]; logits are divided by ``temperature``."""
    hidden_RE, rows = output_hidden(model, batch)
    return token_logprobs(hidden_RE, model.lm_head_VE, rows.labels_R, temperature)


def token_logprobs(hidden_RE: Tensor, lm_head_VE: Tensor, ids_R: Tensor, temperature: float = 1.0) -> Tensor:
    """Return log softmax(hidden Wᵀ / temperature) of one token per row, float32.

    The backward pass computes the logits again.
    """

    def logprobs(hidden_rE: Tensor, weight_VE: Tensor, ids_r: Tensor) -> Tensor:
        logits_rV = _logits(hidden_rE, weight_VE) / temperature
        return logits_rV.log_softmax(-1).gather(-1, ids_r[:, None])[:, 0]

    block = max(1, BLOCK_ELEMENTS // len(lm_head_VE))
    run: Any = checkpoint if torch.is_grad_enabled() else lambda function, *tensors, **_: function(*tensors)
    parts = [
        run(logprobs, hidden_rE, lm_head_VE, ids_r, use_reentrant=False, preserve_rng_state=False)
        for hidden_rE, ids_r in zip(torch.split(hidden_RE, block), torch.split(ids_R, block), strict=True)
    ]
    return torch.cat(parts) if parts else hidden_RE.new_zeros(0)


def sequence_sums(values_R: Tensor, batch: Batch) -> Tensor:
    """Return the sum of the output tokens' values per sequence, [B]."""
    owners_R = predicted_rows(batch).rows_R // batch.ids_BS.shape[1]
    return values_R.new_zeros(len(batch.ids_BS)).index_add(0, owners_R, values_R)


def output_lengths(batch: Batch) -> Tensor:
    """Return the number of output tokens per sequence, float32 [B]."""
    return sequence_sums(torch.ones(len(predicted_rows(batch).rows_R), device=batch.ids_BS.device), batch)


@torch.no_grad()
def output_kl(model: LanguageModel, reference: LanguageModel, batch: Batch, temperature: float = 1.0) -> Tensor:
    """Return KL(model ‖ reference) of the next token's distribution before each output token, in nats [R]."""
    (hidden_RE, _), (reference_RE, _) = output_hidden(model, batch), output_hidden(reference, batch)
    block = max(1, BLOCK_ELEMENTS // len(model.lm_head_VE))
    parts = []
    for pair in zip(torch.split(hidden_RE, block), torch.split(reference_RE, block), strict=True):
        weights = model.lm_head_VE, reference.lm_head_VE
        logp_rV, logq_rV = (
            (_logits(hidden_rE, weight_VE) / temperature).log_softmax(-1)
            for hidden_rE, weight_VE in zip(pair, weights, strict=True)
        )
        parts.append((logp_rV.exp() * (logp_rV - logq_rV)).sum(-1).clamp_min(0.0))
    return torch.cat(parts) if parts else hidden_RE.new_zeros(0)


def _logits(hidden_rE: Tensor, weight_VE: Tensor) -> Tensor:
    """Return the logits in float32, also under autocast: in bfloat16, those near 20 are a sixteenth apart."""
    with torch.autocast(hidden_rE.device.type, enabled=False):
        return hidden_rE.float() @ weight_VE.float().T
