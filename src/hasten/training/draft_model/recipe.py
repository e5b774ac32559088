"""``DraftModelRecipe``: a small model of the target's family and vocabulary that learns the target's distribution (Hinton et al., 2015)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hasten.core.errors import InvalidOption

if TYPE_CHECKING:
    from hasten.training.corpus import Corpus
    from hasten.training.draft_model.task import DraftModelTask
    from hasten.training.target_model import TargetModel


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftModelRecipe:
    """Raises ``InvalidOption`` for values out of range."""

    name: ClassVar[str] = "draft"
    weight_decay: ClassVar[float] = 0.01

    init_from: str | None = None  # a model to go on from, such as a small one of the target's family; None: one of random weights
    layers: int | None = None  # of that; None: 2
    hidden: int | None = None  # its hidden size, a multiple of the target's head size; None: that nearest to 128
    hard_label_weight: float = 0.2  # weight of the text itself in the loss; the rest is the target's distribution
    draft_vocab: int | None = None  # the tokens that it guesses from when it drafts: the most frequent of the text

    def __post_init__(self) -> None:
        for name, value in (("layers", self.layers), ("hidden", self.hidden)):
            if value is not None and value < 1:
                raise InvalidOption(f"{name} is out of range", got=value, allowed="from 1")
            if value is not None and self.init_from is not None:
                raise InvalidOption(
                    f"a model that goes on from another one has the {name} of that",
                    got=f"{name}={value} beside init_from={self.init_from}",
                    allowed="one of them",
                    remedy=f"Leave {name} out, or init_from, for a model of random weights",
                )
        if not 0.0 <= self.hard_label_weight <= 1.0:
            raise InvalidOption(
                "hard_label_weight is out of range",
                got=self.hard_label_weight,
                allowed="0 (the target alone) to 1 (the text alone)",
            )

    @property
    def learning_rate(self) -> float:
        """What suits random weights undoes what a model has learned."""
        return 2e-3 if self.init_from is None else 3e-4

    def build(self, target: TargetModel, corpus: Corpus, seed: int) -> DraftModelTask:
        from hasten.training.draft_model.task import DraftModelTask

        return DraftModelTask(target, self, corpus, seed)
