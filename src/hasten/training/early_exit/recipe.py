"""``EarlyExitRecipe``: places to leave a frozen model before its last layer (CALM, Schuster et al., 2022; FastBERT, Liu et al., 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hasten.core.errors import InvalidOption

if TYPE_CHECKING:
    from hasten.training.corpus import Corpus
    from hasten.training.early_exit.task import EarlyExitTask
    from hasten.training.target_model import TargetModel

SHARES = (3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)  # of the depth, where exits are if nobody says


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyExitRecipe:
    """Raises ``InvalidOption`` for values out of range."""

    name: ClassVar[str] = "exits"
    learning_rate: ClassVar[float] = 2e-3
    weight_decay: ClassVar[float] = 0.0

    layers: tuple[int, ...] | None = None  # exits after so many layers; None: by ``SHARES``
    texts: int = 256  # held-out windows that thresholds are calibrated on, and as many others that tables are made of; 0: neither
    draft_vocab: int | None = None  # the tokens that first layers guess from, for the whole model: the most frequent of the text

    def __post_init__(self) -> None:
        if self.texts < 0:
            raise InvalidOption("the number of texts is out of range", got=self.texts, allowed="from 0")
        if self.layers is not None and (not self.layers or min(self.layers) < 1 or len(set(self.layers)) < len(self.layers)):
            raise InvalidOption("these are no exits", got=self.layers, allowed="numbers of layers from 1, each once")

    def settled(self, num_layers: int) -> tuple[int, ...]:
        """The exits of a model, rising. Raises ``InvalidOption`` for layers that it does not have."""
        if self.layers is None:
            found = sorted({round(share * num_layers) for share in SHARES} & set(range(1, num_layers)))
        else:
            found = sorted(self.layers)
        if not found or found[-1] >= num_layers:
            raise InvalidOption(
                "an exit is before the last layer and after the first",
                got=f"exits after {', '.join(map(str, found)) or 'no'} layers",
                allowed=f"1 to {num_layers - 1}, for this model of {num_layers} layers",
                remedy="Choose others with --layers",
            )
        return tuple(found)

    def build(self, target: TargetModel, corpus: Corpus, seed: int) -> EarlyExitTask:
        from hasten.training.early_exit.task import EarlyExitTask

        return EarlyExitTask(target, self, corpus)
