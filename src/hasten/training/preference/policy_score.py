"""``PolicyScore``: the rewards of generated outputs and their distance from the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BEYOND = 1e6  # added to the loss of a policy beyond its KL limit, so that any other one is better


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyScore:
    """Sums over outputs to held-out prompts. They add up over batches."""

    num_outputs: int
    num_positions: int  # tokens of the outputs
    reward: float
    kl: float  # KL(model ‖ reference) over all tokens, in nats
    max_kl: float  # limit of the mean per token

    def __add__(self, other: PolicyScore) -> PolicyScore:
        return PolicyScore(
            num_outputs=self.num_outputs + other.num_outputs,
            num_positions=self.num_positions + other.num_positions,
            reward=self.reward + other.reward,
            kl=self.kl + other.kl,
            max_kl=self.max_kl,
        )

    @property
    def mean_reward(self) -> float:
        return self.reward / max(1, self.num_outputs)

    @property
    def mean_kl(self) -> float:
        """KL(model ‖ reference) per token, in nats."""
        return self.kl / max(1, self.num_positions)

    @property
    def must_stop(self) -> bool:
        """Whether the model is beyond its limit."""
        return self.mean_kl > self.max_kl

    @property
    def mean_loss(self) -> float:
        """The negative mean reward; beyond the KL limit, more than any of these."""
        return BEYOND + self.mean_kl if self.must_stop else -self.mean_reward

    def as_dict(self) -> dict[str, Any]:
        return {
            "loss": self.mean_loss,
            "reward": self.mean_reward,
            "kl_to_reference": self.mean_kl,
            "outputs": self.num_outputs,
            "positions": self.num_positions,
        }

    def describe(self) -> str:
        return f"reward {self.mean_reward:.3f}, KL to the reference {self.mean_kl:.4f} nats per token"
