"""``EagleRecipe``: the recipe of an EAGLE-3 head (Li et al., 2025, arXiv 2503.01840)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hasten.core.errors import InvalidOption

if TYPE_CHECKING:
    from hasten.training.corpus import Corpus
    from hasten.training.eagle.task import EagleTask
    from hasten.training.target_model import TargetModel

MAX_GUESSES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class EagleRecipe:
    """Raises ``InvalidOption`` that lists every value out of range."""

    name: ClassVar[str] = "eagle"
    learning_rate: ClassVar[float] = 1e-3
    weight_decay: ClassVar[float] = 0.0

    init_from: str | None = None  # a head to go on from, which then also settles the shape; None: one of random weights
    ttt_steps: int = 5  # one after the other, each on the one before it
    draft_vocab: int | None = None  # the tokens that can be guessed: the most frequent ones of the text
    aux_layers: tuple[int, ...] | None = None  # the model's states after this many layers are what the head reads
    intermediate: int | None = None  # width of the head's feed-forward layer; None: the model's
    norm_before_residual: bool = True

    def __post_init__(self) -> None:
        layers = self.aux_layers
        wrong = [
            f"{name}={value!r} (allowed: {allowed})"
            for name, value, allowed, ok in (
                ("ttt_steps", self.ttt_steps, f"1 to {MAX_GUESSES}", 1 <= self.ttt_steps <= MAX_GUESSES),
                ("draft_vocab", self.draft_vocab, "from 1", self.draft_vocab is None or self.draft_vocab >= 1),
                ("aux_layers", layers, "three numbers from 1", layers is None or (len(layers) == 3 and min(layers) >= 1)),
                ("intermediate", self.intermediate, "from 1", self.intermediate is None or self.intermediate >= 1),
            )
            if not ok
        ]
        if wrong:
            raise InvalidOption(f"{len(wrong)} of the options of an EAGLE-3 head out of range: {'; '.join(wrong)}")
        settled = [name for name in ("draft_vocab", "aux_layers", "intermediate") if getattr(self, name) is not None]
        settled += [] if self.norm_before_residual else ["norm_before_residual"]
        if self.init_from is not None and settled:
            raise InvalidOption(
                f"the head to go on from settles {', '.join(settled)}",
                got=f"both, init_from={self.init_from!r}",
                remedy="Leave one of them out",
            )

    def build(self, target: TargetModel, corpus: Corpus, seed: int) -> EagleTask:
        """Raises ``InvalidOption`` for more draft tokens or deeper states than the model has."""
        from hasten.training.eagle.task import EagleTask

        num_layers = target.spec.num_layers
        if self.aux_layers is not None and max(self.aux_layers) > num_layers:
            raise InvalidOption(
                "the head would read states of layers that the model does not have",
                got=", ".join(map(str, self.aux_layers)),
                allowed=f"1 to {num_layers}",
            )
        return EagleTask(self, target, corpus, seed)
