"""``LayerScore``: a rule for the layers that stay.

Shape suffixes: B sequences · S tokens per sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Protocol

from torch import Tensor

from hasten.compress.prune.layer_subset import LayerSubset
from hasten.core.errors import CheckpointError


class LayerScore(Protocol):
    """One rule. Each file of ``layer_score`` holds one as ``SCORE``; the file's name is its name."""

    def keep(self, subset: LayerSubset, num_layers: int, ids_BS: Tensor, seed: int, tick: Callable[[], None]) -> LayerSubset:
        """Return the ``num_layers`` layers that stay. ``tick`` is called after each batch.

        Raises ``CheckpointError`` for a model that overflows.
        """
        ...


def check_finite(scores: Iterable[float], name: str) -> None:
    """Raise ``CheckpointError`` unless all scores of layers are finite: others have no order."""
    if not all(map(math.isfinite, scores)):
        raise CheckpointError(f"the scores of layers by {name} are not finite, so none can be chosen", remedy="Mend the checkpoint")
