"""``DistillRecipe``: what a student learns from its teacher. This module imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from hasten.core.check_fields import Fault, check_fields
from hasten.core.errors import InvalidOption
from hasten.core.field_type import OneOf, Range

SFT = "sft"
LOSSES = (SFT, "forward-kl", "reverse-kl", "js", "skew-kl", "skew-reverse-kl")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillRecipe:
    """The loss of a student; p is the teacher's distribution and q the student's.

    - sft: cross entropy of the text's tokens, without a teacher.
    - forward-kl: KL(p ‖ q) (Hinton et al., 2015). reverse-kl: KL(q ‖ p) (MiniLLM, Gu et al., 2024).
    - js: the generalised Jensen-Shannon divergence (GKD, Agarwal et al., 2024).
    - skew-kl: KL(p ‖ α p + (1 - α) q). skew-reverse-kl: KL(q ‖ (1 - α) p + α q). Both are of DistiLLM (Ko et al., 2024).

    Raises ``InvalidOption`` for values out of range.
    """

    name: ClassVar[str] = "distill"
    learning_rate: ClassVar[float] = 3e-4
    weight_decay: ClassVar[float] = 0.01

    loss: Annotated[str, OneOf(LOSSES)] = "forward-kl"
    temperature: Annotated[float, Range(0, 100, above=True)] = 1.0  # divides both models' logits in the divergence
    beta: Annotated[float, Range(0, 1)] = 0.5  # of js: 0 is forward-kl, 1 is reverse-kl
    alpha: Annotated[float, Range(0, 1)] = 0.1  # of the skew losses
    hard_label_weight: Annotated[float, Range(0, 1)] = 0.0  # weight of the text's tokens; the rest is the divergence
    hidden_weight: Annotated[float, Range(0, 1e6)] = 0.0  # of the layers' hidden states, beside the rest of the loss
    on_policy: Annotated[float, Range(0, 1)] = 0.0  # share of batches whose outputs the student itself generates (GKD)

    def __post_init__(self) -> None:
        check_fields(self, "distillation option", InvalidOption, self._conflicts)

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss reads the teacher."""
        return self.loss != SFT or self.hidden_weight > 0

    def _conflicts(self) -> Iterator[Fault]:
        if self.loss == SFT and self.on_policy:
            yield Fault("on_policy", "0 with loss=sft, which would learn its own samples", "Choose a divergence")
        if self.loss == SFT and self.hard_label_weight not in (0.0, 1.0):
            yield Fault("hard_label_weight", "left out with loss=sft", "Omit it, or choose a divergence")
