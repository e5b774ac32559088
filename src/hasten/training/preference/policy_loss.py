"""Advantages and losses of policy gradients, on plain tensors.

Shape suffixes: B outputs, those of one group side by side · R tokens of all outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.training.preference.recipes import RLOO, PolicyRecipe

STD_EPSILON = 1e-4  # added to a group's standard deviation, which may be 0


@dataclass(frozen=True, slots=True)
class PolicyTokens:
    """The log-probabilities of the tokens of a batch of outputs, in nats."""

    logprobs_R: Tensor  # of the model in training, with their graph
    sampled_R: Tensor  # of the model that generated the outputs
    reference_R: Tensor
    owners_R: Tensor  # int64: the output that each token belongs to


def group_advantages(rewards_B: Tensor, recipe: PolicyRecipe) -> Tensor:
    """Return how much better each output is than its group, [B].

    rloo: the reward less the mean of the group's other rewards. grpo: the reward less the group's mean, divided by the standard
    deviation with ``scale``.
    """
    rewards_GK = rewards_B.view(-1, recipe.group_size)
    centred_GK = rewards_GK - rewards_GK.mean(1, keepdim=True)
    if recipe.algorithm == RLOO:
        centred_GK = centred_GK * (recipe.group_size / (recipe.group_size - 1))
    elif recipe.scale:
        centred_GK = centred_GK / (rewards_GK.std(1, keepdim=True) + STD_EPSILON)
    return centred_GK.flatten()


def policy_loss(tokens: PolicyTokens, advantages_B: Tensor, recipe: PolicyRecipe) -> Tensor:
    """Return the loss of a policy with its KL penalty, a scalar.

    Its gradient for fresh outputs is the negative policy gradient.

    The importance ratio is that of the model to the one that generated, and is clipped as in PPO (Schulman et al., 2017).
    """
    num_outputs = len(advantages_B)
    lengths_B = _sums(torch.ones_like(tokens.sampled_R), tokens.owners_R, num_outputs)
    penalty_R = recipe.beta * k3(tokens.logprobs_R, tokens.reference_R)
    log_ratio_R = tokens.logprobs_R - tokens.sampled_R
    if recipe.algorithm == RLOO:
        ratio_B = _sums(log_ratio_R, tokens.owners_R, num_outputs).exp()
        penalty_B = _sums(penalty_R, tokens.owners_R, num_outputs) / lengths_B
        return (_clipped(ratio_B, advantages_B, recipe.clip) + penalty_B).mean()
    loss_R = _clipped(log_ratio_R.exp(), advantages_B[tokens.owners_R], recipe.clip) + penalty_R
    if recipe.loss_mean == "token":
        return loss_R.mean()
    if recipe.loss_mean == "constant":
        return loss_R.sum() / (num_outputs * recipe.max_new_tokens)
    return (_sums(loss_R, tokens.owners_R, num_outputs) / lengths_B).mean()


def k3(logprobs_R: Tensor, reference_R: Tensor) -> Tensor:
    """Return the k3 estimate of KL(model ‖ reference) per sampled token (Schulman, 2020).

    It is never negative.
    """
    log_ratio_R = reference_R - logprobs_R
    return log_ratio_R.exp() - log_ratio_R - 1.0


def _clipped(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    return -torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip, 1.0 + clip) * advantages)


def _sums(values_R: Tensor, owners_R: Tensor, count: int) -> Tensor:
    return values_R.new_zeros(count).index_add(0, owners_R, values_R)
