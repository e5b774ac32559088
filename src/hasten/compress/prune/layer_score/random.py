"""``random``: layers drawn by the seed, the control of every other score."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hasten.compress.prune.layer_subset import LayerSubset
from hasten.training.corpus import derived_seed


class RandomLayers:
    """It reads no text."""

    def keep(self, subset: LayerSubset, num_layers: int, ids_BS: Tensor, seed: int, tick: Callable[[], None]) -> LayerSubset:
        generator = torch.Generator(device="cpu").manual_seed(derived_seed(seed, "layers", 0))
        order = torch.randperm(len(subset.layers), generator=generator, device="cpu").tolist()
        return LayerSubset(subset.model, tuple(sorted(subset.layers[index] for index in order[:num_layers])))


SCORE = RandomLayers()
