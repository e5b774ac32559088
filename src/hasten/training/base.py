"""``TrainingTask``: what the loop trains. ``Recipe``: the options of one kind of it, and how it is made beside a frozen model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hasten.training.callback import TrainingCallback
    from hasten.training.corpus import Batch, Corpus
    from hasten.training.draft_score import DraftScore
    from hasten.training.options import TrainOptions
    from hasten.training.target_model import TargetModel


class TrainingTask(Protocol):
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What is trained, by name: float32, ``requires_grad``, the same objects at every call. Nothing else gets a gradient."""
        ...

    def loss(self, batch: Batch) -> Tensor:
        """The mean loss of a batch, a scalar with a graph behind it. A function of the parameters and the batch alone."""
        ...

    def evaluate(self, batch: Batch) -> DraftScore:
        """The same loss and what would have been accepted, on held-out text. Called under ``torch.no_grad``."""
        ...

    def save(self, folder: Path, score: DraftScore) -> None:
        """Writes the checkpoint with the parameters as they are; ``score`` is theirs on held-out text."""
        ...


@runtime_checkable
class Finisher(Protocol):
    """A task that makes more of the text once its weights are settled: ``save`` follows."""

    def finish(
        self, corpus: Corpus, options: TrainOptions, callback: TrainingCallback, stop: Callable[[], bool]
    ) -> Mapping[str, Any] | None:
        """Plain data for ``training.json``. A function of the parameters and the arguments alone; a killed run does it again.

        None if ``stop`` asked to stop.
        """
        ...


class Recipe(Protocol):
    """A frozen dataclass whose fields are plain data and are the options of ``hasten train NAME``.

    Its file must be light to import (no torch): ``build`` imports what it needs. Raises ``InvalidOption`` for values out of range.
    """

    name: ClassVar[str]
    weight_decay: ClassVar[float]

    @property
    def learning_rate(self) -> float:
        """The default peak."""
        ...

    def build(self, target: TargetModel, corpus: Corpus, seed: int) -> TrainingTask:
        """Initialised as a function of its arguments alone. Raises ``HastenError`` if it cannot be trained beside this model."""
        ...
