"""``Pattern``: how many weights become zero, and among which they are chosen.

Shape suffixes: O outputs · I inputs · N numbers that are compared with each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP, KEPT = 4, 2  # of 2:4: consecutive inputs, of which this many stay; the layout of NVIDIA's sparse tensor cores
ROWS = 512  # that are sorted at a time, in 64-bit indices


@dataclass(frozen=True, slots=True)
class Pattern:
    ratio: float  # share of the weights that become zero
    is_2_4: bool = False  # two of four consecutive inputs of each output

    def rows(self, scores_OI: Tensor) -> Tensor:
        """Return which weights become zero, bool [O, I]: the lowest scores in each row or group of four."""
        if self.is_2_4:
            return self.groups(scores_OI)
        count = self._count(scores_OI.shape[1])
        return torch.cat([_lowest(part_OI, count) for part_OI in torch.split(scores_OI, ROWS)])

    def matrix(self, scores_OI: Tensor) -> Tensor:
        """Return which weights become zero, bool [O, I]: those of the lowest scores among all."""
        return _lowest(scores_OI.flatten(), self._count(scores_OI.numel())).view(scores_OI.shape)

    def groups(self, scores_OI: Tensor) -> Tensor:
        """Return which weights become zero, bool [O, I]: those of the two lowest scores in each group of four."""
        groups = scores_OI.reshape(len(scores_OI), -1, GROUP)
        return _lowest(groups, GROUP - KEPT).flatten(1)

    def _count(self, size: int) -> int:
        return round(self.ratio * size)


def _lowest(scores_N: Tensor, count: int) -> Tensor:
    """Return where the ``count`` lowest scores of the last dimension are. Of equal ones, the first."""
    chosen_N = torch.zeros_like(scores_N, dtype=torch.bool)
    order_N = scores_N.argsort(dim=-1, stable=True)
    return chosen_N.scatter_(-1, order_N[..., :count], value=True)
