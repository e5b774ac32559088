"""``Draft``: a small model of the target's family and vocabulary that learns the target's distribution (Hinton et al., 2015)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hasten.core.errors import InvalidOption

if TYPE_CHECKING:
    from hasten.compress.draft_trainee import DraftTrainee
    from hasten.compress.training.backbone import Backbone
    from hasten.compress.training.corpus import Corpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """Raises ``InvalidOption`` for values out of range."""

    name: ClassVar[str] = "draft"
    weight_decay: ClassVar[float] = 0.01

    start: str | None = None  # a model to go on from, such as a small one of the target's family; None: one of random weights
    layers: int | None = None  # of that; None: 2
    hidden: int | None = None  # its hidden size, a multiple of the target's head size; None: that nearest to 128
    hard: float = 0.2  # weight of the text itself in the loss; the rest is the target's distribution
    draft_vocab: int | None = None  # the tokens that it guesses from when it drafts: the most frequent of the text

    def __post_init__(self) -> None:
        for name, value in (("layers", self.layers), ("hidden", self.hidden)):
            if value is not None and value < 1:
                raise InvalidOption(f"{name} is out of range", got=value, allowed="from 1")
            if value is not None and self.start is not None:
                raise InvalidOption(
                    f"a model that goes on from another one has the {name} of that",
                    got=f"{name}={value} beside start={self.start}",
                    allowed="one of them",
                    remedy=f"Leave {name} out, or start, for a model of random weights",
                )
        if not 0.0 <= self.hard <= 1.0:
            raise InvalidOption("hard is out of range", got=self.hard, allowed="0 (the target alone) to 1 (the text alone)")

    @property
    def learning_rate(self) -> float:
        """What suits random weights undoes what a model has learned."""
        return 2e-3 if self.start is None else 3e-4

    def build(self, backbone: Backbone, corpus: Corpus, seed: int) -> DraftTrainee:
        from hasten.compress.draft_trainee import DraftTrainee

        return DraftTrainee(backbone, self, corpus, seed)
