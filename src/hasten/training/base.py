"""``TrainingTask``: what the loop trains.

``WeightedTask``: one whose batches count by their size. ``CalibratedTask``: one that also measures at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from hasten.training.score import AnyScore

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hasten.training.callback import TrainingCallback
    from hasten.training.corpus import Batch
    from hasten.training.options import TrainOptions


class TrainingTask(Protocol[AnyScore]):
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return the trained parameters by name: float32, ``requires_grad``, the same objects at every call."""
        ...

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean loss of a batch, a scalar that depends on the parameters and the batch only."""
        ...

    def evaluate(self, batch: Batch) -> AnyScore:
        """Return the score of a validation batch. The caller disables gradients."""
        ...

    def save(self, folder: Path, score: AnyScore) -> None:
        """Write the checkpoint of the current parameters. ``score`` is their validation score."""
        ...


@runtime_checkable
class WeightedTask(Protocol):
    def weight(self, batch: Batch) -> float:
        """Return how much the mean loss of a batch counts beside the other batches of its step.

        With the number that the mean is over, a step of several batches has the loss of their union.
        """
        ...


def loss_weight(task: object, batch: Batch) -> float:
    """Return the weight of a batch; 1 if the task has none."""
    return task.weight(batch) if isinstance(task, WeightedTask) else 1.0


@runtime_checkable
class CalibratedTask(Protocol):
    def calibrate(
        self, corpus: Any, options: TrainOptions, callback: TrainingCallback, should_stop: Callable[[], bool]
    ) -> Mapping[str, Any] | None:
        """Calibrate or measure, before ``save``, and return entries for ``training.json``.

        ``corpus`` is the one of which ``build_task`` made the task. The result depends on the final parameters and the arguments,
        so a resumed run repeats it. None if ``should_stop`` returned True.
        """
        ...
