"""``random``: scores drawn by the seed, the control of every other method.

Shape suffixes: as in ``base``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hasten.compress.prune.importance.base import ImportanceScores
from hasten.compress.prune.layer_subset import LayerSubset
from hasten.compress.prune.shape import Shape
from hasten.training.corpus import derived_seed


class RandomImportance:
    """It reads no text."""

    def measure(self, subset: LayerSubset, ids_BS: Tensor, seed: int, tick: Callable[[], None]) -> ImportanceScores:
        shape, num_layers = Shape.of(subset.model.spec), len(subset.layers)
        generator = torch.Generator(device="cpu").manual_seed(derived_seed(seed, "importance", 0))
        counts = [(num_layers, shape.num_kv_heads), (num_layers, shape.num_heads), (num_layers, shape.intermediate_size)]
        scores = [
            torch.rand(*count, generator=generator, dtype=torch.float32, device="cpu") for count in (*counts, (shape.hidden_size,))
        ]
        return ImportanceScores(*scores)


METHOD = RandomImportance()
