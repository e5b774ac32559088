"""``SparseGpt``: zeros whose errors the later inputs make up for.

The method is that of Frantar & Alistarh, 2023, arXiv 2301.00774. It is GPTQ's loop with zero as the only other value. With the
upper factor U of the inverse Hessian, Uᵀ U = H⁻¹, a weight costs w² / U_jj² if it becomes zero after all earlier inputs. Each block
of 128 inputs chooses its zeros by this cost when it begins, and each group of four inputs with the pattern 2:4.

Shape suffixes: O outputs · I inputs · B inputs of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hasten.compress.prune.masks.pattern import GROUP, Pattern
from hasten.compress.quantize.inverse_factor import inverse_factor
from hasten.compress.quantize.statistics import InputStatistics
from hasten.core.errors import CheckpointError, show

BLOCK = 128  # inputs that choose their zeros together
DAMPING, MAX_DAMPING = 0.01, 1.0  # of the Hessian's diagonal, times its mean
REMEDY = "Calibrate on more or other text, or choose the method wanda"


@dataclass(frozen=True, slots=True)
class SparseGpt:
    needs_statistics: ClassVar[bool] = True
    needs_hessian: ClassVar[bool] = True

    def prune(self, weights_OI: Tensor, pattern: Pattern, statistics: InputStatistics | None, name: str) -> Tensor:
        """See ``MaskMethod``. Weights of inputs that are 0 for all tokens become zero, too."""
        assert statistics is not None, "SparseGPT needs the Hessian of the inputs"
        num_inputs = weights_OI.shape[1]
        order_I = torch.arange(num_inputs, dtype=torch.int64, device="cpu")
        factor_II = inverse_factor(statistics, order_I, name, damping=DAMPING, max_damping=MAX_DAMPING, remedy=REMEDY)
        unused_I = statistics.square_sum_I == 0
        weights_IO = weights_OI.masked_fill(unused_I, 0).T.contiguous()
        for start in range(0, num_inputs, BLOCK):
            stop = min(start + BLOCK, num_inputs)
            errors_BO = _prune_block(weights_IO[start:stop], factor_II[start:stop, start:stop], pattern)
            weights_IO[stop:].addmm_(factor_II[start:stop, stop:].T, errors_BO, alpha=-1)
        if not bool(weights_IO.isfinite().all()):
            raise CheckpointError(f"the weights of {show(name)} overflow in SparseGPT", remedy=REMEDY)
        return weights_IO.T.contiguous()


def _prune_block(weights_BO: Tensor, factor_BB: Tensor, pattern: Pattern) -> Tensor:
    """Prune a block's weights in place, and return their errors divided by the pivots, float32 [B, O]."""
    errors_BO = torch.zeros_like(weights_BO)
    pivots_B = factor_BB.diagonal()
    removed_BO = torch.zeros_like(weights_BO, dtype=torch.bool)
    if not pattern.is_2_4:
        removed_BO = pattern.matrix((weights_BO / pivots_B[:, None]).square())
    for i in range(len(weights_BO)):
        if pattern.is_2_4 and i % GROUP == 0:
            group = slice(i, i + GROUP)
            removed_BO[group] = pattern.groups((weights_BO[group] / pivots_B[group, None]).square().T).T
        errors_BO[i] = weights_BO[i].masked_fill(~removed_BO[i], 0) / pivots_B[i]
        weights_BO[i].masked_fill_(removed_BO[i], 0)
        weights_BO[i + 1 :].addr_(factor_BB[i, i + 1 :], errors_BO[i], alpha=-1)
    return errors_BO


METHOD = SparseGpt
