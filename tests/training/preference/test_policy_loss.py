"""Advantages and policy losses against hand formulas, TRL's values, finite differences, and the exact policy gradient."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hasten.core.errors import InvalidOption
from hasten.training.preference.policy_loss import PolicyTokens, group_advantages, k3, policy_loss
from hasten.training.preference.recipes import PolicyRecipe

TRL: dict[str, Any] = json.loads((Path(__file__).parent / "trl_losses.json").read_text())["grpo"]
MEANS = {"grpo": "sequence", "bnpo": "token", "dr_grpo": "constant"}
REWARDS = torch.tensor([1.0, 0.0, 0.0, 1.0, 5.0, 5.0, 5.0, 5.0], dtype=torch.float64)


def double(name: str) -> Tensor:
    return torch.tensor(TRL[name], dtype=torch.float64)


@pytest.mark.parametrize("case", TRL["cases"], ids=lambda case: f"{case['loss_type']}-{case['beta']}")
def test_loss_and_gradient_are_those_of_trl(case: dict[str, Any]) -> None:
    mask_BS = double("mask").bool()
    leaf_BS = double("logprobs").requires_grad_()
    owners_R = torch.arange(len(mask_BS))[:, None].expand_as(mask_BS)[mask_BS]
    tokens = PolicyTokens(leaf_BS[mask_BS], double("sampled")[mask_BS], double("reference")[mask_BS], owners_R)
    recipe = PolicyRecipe(group_size=3, beta=case["beta"], loss_mean=MEANS[case["loss_type"]], max_new_tokens=mask_BS.shape[1])
    loss = policy_loss(tokens, double("advantages"), recipe)
    (gradient_BS,) = torch.autograd.grad(loss, leaf_BS)
    assert float(loss.detach()) == pytest.approx(case["loss"], abs=1e-12)
    torch.testing.assert_close(gradient_BS, torch.tensor(case["gradient"], dtype=torch.float64), atol=1e-12, rtol=0)


def test_advantages_are_the_formulas() -> None:
    def advantages(**options: Any) -> list[float]:
        found: list[float] = group_advantages(REWARDS, PolicyRecipe(group_size=4, **options)).tolist()
        return found

    deviation = (4 * 0.25 / 3) ** 0.5  # of 1, 0, 0, 1 with n - 1
    scaled = 0.5 / (deviation + 1e-4)
    assert advantages() == pytest.approx([scaled, -scaled, -scaled, scaled, 0, 0, 0, 0])
    assert advantages(scale=False) == pytest.approx([0.5, -0.5, -0.5, 0.5, 0, 0, 0, 0])
    # The other rewards of the first output's group are 0, 0 and 1.
    assert advantages(algorithm="rloo") == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3, 0, 0, 0, 0])


def random_tokens(seed: int, lengths: list[int], spread: float) -> PolicyTokens:
    generator = torch.Generator().manual_seed(seed)
    count = sum(lengths)
    logprobs_R = torch.randn(count, generator=generator, dtype=torch.float64) - 2
    noise = [spread * torch.randn(count, generator=generator, dtype=torch.float64) for _ in range(2)]
    owners_R = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return PolicyTokens(logprobs_R, logprobs_R + noise[0], logprobs_R + noise[1], owners_R)


def test_rloo_has_one_clipped_ratio_per_output() -> None:
    lengths, advantages = [3, 1, 2], [1.0, -2.0, 0.5]
    recipe = PolicyRecipe(algorithm="rloo", group_size=3, beta=0.3)
    for seed in range(5):
        tokens = random_tokens(seed, lengths, 0.3)
        expected, begin = 0.0, 0
        for length, advantage in zip(lengths, advantages, strict=True):
            rows = slice(begin, begin + length)
            begin += length
            ratio = float((tokens.logprobs_R[rows] - tokens.sampled_R[rows]).sum().exp())
            kl = sum(2.718281828459045**d - d - 1 for d in (tokens.reference_R - tokens.logprobs_R)[rows].tolist()) / length
            expected += (-min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage) + 0.3 * kl) / 3
        assert float(policy_loss(tokens, torch.tensor(advantages).double(), recipe)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("options", [{"algorithm": "rloo"}, {}, {"loss_mean": "token"}, {"loss_mean": "constant"}], ids=str)
def test_gradients_are_finite_differences(options: dict[str, Any]) -> None:
    """Ratios far from the clip's kinks."""
    tokens = random_tokens(1, [3, 1, 2], 0.02)
    recipe = PolicyRecipe(group_size=3, beta=0.5, **options)
    advantages_B = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def loss(logprobs_R: Tensor) -> Tensor:
        return policy_loss(PolicyTokens(logprobs_R, tokens.sampled_R, tokens.reference_R, tokens.owners_R), advantages_B, recipe)

    assert torch.autograd.gradcheck(loss, tokens.logprobs_R.clone().requires_grad_(), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("options", [{"algorithm": "rloo"}, {"scale": False}], ids=["rloo", "mean"])
def test_the_gradient_is_unbiased(options: dict[str, Any]) -> None:
    """One token of a vocabulary of 4, groups of 3: the mean over all 64 groups against the gradient of the mean reward.

    The group's own mean as the baseline shrinks the gradient by (k - 1) / k (Shao et al.); leaving the output out does not.
    """
    logits_V = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    reward_V = torch.tensor([1.0, 0.0, -2.0, 0.5], dtype=torch.float64)
    (exact_V,) = torch.autograd.grad((logits_V.softmax(0) * reward_V).sum(), logits_V)
    recipe = PolicyRecipe(group_size=3, beta=0.0, **options)
    mean_V = torch.zeros(4, dtype=torch.float64)
    for group in itertools.product(range(4), repeat=3):
        ids_R = torch.tensor(group)
        logprobs_R = logits_V.log_softmax(0)[ids_R]
        detached_R = logprobs_R.detach()
        tokens = PolicyTokens(logprobs_R, detached_R, detached_R, torch.arange(3))
        (gradient_V,) = torch.autograd.grad(policy_loss(tokens, group_advantages(reward_V[ids_R], recipe), recipe), logits_V)
        mean_V -= gradient_V * detached_R.sum().exp()
    factor = 1.0 if recipe.algorithm == "rloo" else 2 / 3
    torch.testing.assert_close(mean_V, factor * exact_V, atol=1e-12, rtol=0)


def test_k3_is_an_unbiased_estimate_and_never_negative() -> None:
    logp_V, logq_V = (
        torch.randn(6, generator=torch.Generator().manual_seed(s), dtype=torch.float64).log_softmax(0) for s in (0, 1)
    )
    exact = float((logp_V.exp() * (logp_V - logq_V)).sum())
    assert float((logp_V.exp() * k3(logp_V, logq_V)).sum()) == pytest.approx(exact, abs=1e-12)
    assert bool((k3(logp_V, logq_V) >= 0).all())


def test_options_without_effect_are_refused() -> None:
    with pytest.raises(InvalidOption, match="scale"):
        PolicyRecipe(algorithm="rloo", scale=False)
    with pytest.raises(InvalidOption, match="loss_mean"):
        PolicyRecipe(algorithm="rloo", loss_mean="token")
