"""``MedusaRecipe``: heads on the last hidden state, each guessing one token further (Cai et al., 2024, arXiv 2401.10774)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hasten.core.errors import InvalidOption, nearest

if TYPE_CHECKING:
    from hasten.training.corpus import Corpus
    from hasten.training.medusa.task import MedusaTask
    from hasten.training.target_model import TargetModel

MAX_HEADS = 16
LM_HEADS = ("model", "copy", "own")


@dataclass(frozen=True, slots=True, kw_only=True)
class MedusaRecipe:
    """Raises ``InvalidOption`` for values out of range."""

    name: ClassVar[str] = "medusa"
    learning_rate: ClassVar[float] = 1e-3
    weight_decay: ClassVar[float] = 0.0

    heads: int = 4  # head i (from 0) guesses the token i + 2 places on
    layers: int = 1  # residual layers of a head
    # model: the heads use the model's projection. copy: the same, and the file holds a copy of it for engines that need one.
    # own: each head learns its own, which begins as the model's.
    lm_head: str = "model"
    draft_vocab: int | None = None  # the tokens that can be guessed: the most frequent ones of the text

    def __post_init__(self) -> None:
        for name, value, most in (("heads", self.heads, MAX_HEADS), ("layers", self.layers, 8)):
            if not 1 <= value <= most:
                raise InvalidOption(f"the number of {name} is out of range", got=value, allowed=f"1 to {most}")
        if self.lm_head not in LM_HEADS:
            raise InvalidOption("unknown vocabulary projection", got=repr(self.lm_head), remedy=nearest(self.lm_head, LM_HEADS))

    def build(self, target: TargetModel, corpus: Corpus, seed: int) -> MedusaTask:
        from hasten.training.medusa.task import MedusaTask

        return MedusaTask(target, self, corpus)
