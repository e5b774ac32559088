"""Recipes of the preference trainings. Every recipe raises ``InvalidOption`` for values out of range.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from hasten.core.check_fields import Fault, check_fields
from hasten.core.errors import InvalidOption
from hasten.core.field_type import OneOf, Range
from hasten.core.sampling_params import MAX_SEQUENCES

DPO_LOSSES = ("sigmoid", "ipo")
GRPO, RLOO = "grpo", "rloo"
MEANS = ("sequence", "token", "constant")


@dataclass(frozen=True, slots=True, kw_only=True)
class DpoRecipe:
    """Direct preference optimisation.

    - sigmoid: -log σ(β m) (Rafailov et al., 2023, arXiv 2305.18290); m is how much more the model prefers the chosen output than
      the reference does, in nats.
    - ipo: (m - 1 / 2β)², with m per token (Azar et al., 2023, arXiv 2310.12036).
    """

    name: ClassVar[str] = "dpo"
    learning_rate: ClassVar[float] = 1e-5
    weight_decay: ClassVar[float] = 0.0

    loss: Annotated[str, OneOf(DPO_LOSSES)] = "sigmoid"
    beta: Annotated[float, Range(0, 1e3, above=True)] = 0.1  # the larger, the nearer the model stays to the reference
    label_smoothing: Annotated[float, Range(0, 0.5)] = 0.0  # of sigmoid: assumed share of pairs in the wrong order

    def __post_init__(self) -> None:
        check_fields(self, "DPO option", InvalidOption, self._conflicts)

    def _conflicts(self) -> Iterator[Fault]:
        if self.loss != "sigmoid" and self.label_smoothing:
            yield Fault("label_smoothing", f"0 with loss={self.loss}", "Omit it, or choose the loss sigmoid")


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelRecipe:
    """A reward model: a score of the last token, by the order of pairs.

    The model of pairs is of Bradley & Terry, 1952; for language models Ouyang et al., 2022.
    """

    name: ClassVar[str] = "reward-model"
    learning_rate: ClassVar[float] = 1e-4
    weight_decay: ClassVar[float] = 0.01

    center: Annotated[float, Range(0, 1e3)] = 0.01  # weight of (score chosen + score rejected)², which keeps scores near 0

    def __post_init__(self) -> None:
        check_fields(self, "reward model option", InvalidOption)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRecipe:
    """Reinforcement learning from rewards of groups of outputs.

    - grpo: advantages by the group's mean and standard deviation, importance ratios per token (Shao et al., 2024, arXiv
      2402.03300). Without ``scale``, advantages keep the reward's scale (Dr. GRPO, Liu et al., 2025, arXiv 2503.20783).
    - rloo: REINFORCE with the mean of the group's other outputs as the baseline, and one ratio per output (Ahmadian et al., 2024,
      arXiv 2402.14740).
    """

    name: ClassVar[str] = "grpo"
    learning_rate: ClassVar[float] = 1e-4
    weight_decay: ClassVar[float] = 0.0

    algorithm: Annotated[str, OneOf((GRPO, RLOO))] = GRPO
    group_size: Annotated[int, Range(2, MAX_SEQUENCES)] = 8  # outputs per prompt
    max_new_tokens: Annotated[int, Range(1, 2**20)] = 32  # tokens per output
    temperature: Annotated[float, Range(0, 100, above=True)] = 1.0  # of sampling, and of the distribution that is trained
    beta: Annotated[float, Range(0, 1e3)] = 0.04  # weight of the KL divergence from the reference
    clip: Annotated[float, Range(0, 1, above=True)] = 0.2  # limit of importance ratios: from 1 - clip to 1 + clip
    scale: bool = True  # of grpo: divide advantages by the group's standard deviation
    # of the token losses: sequence (mean per output, then over outputs), token (over all tokens), or constant (their sum over
    # outputs · max_new_tokens, as in Dr. GRPO)
    loss_mean: Annotated[str, OneOf(MEANS)] = "sequence"
    refresh_every: Annotated[int, Range(1, 10**6)] = 4  # batches between two generations of outputs
    max_kl: Annotated[float, Range(0, 1e6, above=True)] = 0.5  # KL divergence per token, in nats, that the result keeps

    def __post_init__(self) -> None:
        check_fields(self, "policy option", InvalidOption, self._conflicts)

    def _conflicts(self) -> Iterator[Fault]:
        if self.algorithm == RLOO and not self.scale:
            yield Fault("scale", "left out with algorithm=rloo, which never scales", "Omit it")
        if self.algorithm == RLOO and self.loss_mean != "sequence":
            yield Fault("loss_mean", "sequence with algorithm=rloo, whose loss is per output", "Omit it, or choose grpo")


PreferenceRecipe = DpoRecipe | RewardModelRecipe | PolicyRecipe
