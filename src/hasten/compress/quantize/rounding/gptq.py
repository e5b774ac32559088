"""``Gptq``: round one input after the other, and let the later ones make up for its error.

With the upper factor U of the inverse Hessian, Uᵀ U = H⁻¹, input i is rounded to q_i, and each later input j becomes
w_j - (w_i - q_i) / U_ii * U_ij. This is optimal brain quantisation with one order of inputs for all outputs (GPTQ, Frantar et
al., 2023).

Shape suffixes: O outputs · I inputs, in the order of rounding · G groups · B inputs of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from hasten.compress.quantize.grid import Grid, GroupScales
from hasten.compress.quantize.inverse_factor import inverse_factor
from hasten.compress.quantize.statistics import InputStatistics
from hasten.core.check_fields import Fault, check_fields
from hasten.core.errors import CheckpointError, InvalidOption, show
from hasten.core.field_type import Range
from hasten.layers.formats.stored_matrix import GroupedRows, in_order

REMEDY = "Calibrate on more or other text, raise the damping of GPTQ, or add the matrix to ignore"


@dataclass(frozen=True, slots=True)
class Gptq:
    """Raises ``InvalidOption`` that lists every value out of range.

    ``act_order``: inputs are rounded by falling mean square, with the groups' scales of the original weights, as
    llm-compressor's ``actorder=static`` does. The stored layout does not change. False: in their order, with a group's scales of
    its weights at the time when its first input is rounded.
    """

    needs_hessian: ClassVar[bool] = True

    act_order: bool = True  # round inputs with large activations first
    damping: Annotated[float, Range(0, 1, above=True)] = 0.01  # added to the Hessian's diagonal, times its mean
    max_damping: Annotated[float, Range(0, 100, above=True)] = 1.0  # damping doubles up to this until the Hessian factorises
    block_size: Annotated[int, Range(1, 2**16)] = 128  # inputs between two updates of all later ones; does not change the result

    def __post_init__(self) -> None:
        check_fields(self, "GPTQ option", InvalidOption, self._conflicts)

    def quantize(self, weights_OI: Tensor, grid: Grid, statistics: InputStatistics | None, name: str) -> GroupedRows:
        """See ``Rounding``.

        Inputs that are 0 for all tokens get weights of 0. The last bits of the Hessian's factor depend on the number of threads,
        and so does one code in 10^4 to 10^6.
        """
        assert statistics is not None, "GPTQ needs the Hessian of the inputs"
        statistics.check(name)
        mean_squares_I = statistics.hessian_II.diagonal().clone()
        num_inputs, size = len(mean_squares_I), grid.group_size(len(mean_squares_I))
        weights_OI = weights_OI.masked_fill(mean_squares_I == 0, 0)
        if self.act_order:
            order_I = mean_squares_I.argsort(descending=True, stable=True)
            fitted = grid.fit(weights_OI, statistics)
            scales_GO, zeros_GO = fitted.scales_OG.T.contiguous(), fitted.zeros_OG.T.contiguous()
        else:
            order_I = torch.arange(num_inputs, dtype=torch.int64, device="cpu")
            scales_GO = weights_OI.new_empty(num_inputs // size, len(weights_OI))
            zeros_GO = torch.empty_like(scales_GO)
        weights_IO, groups = weights_OI.T.contiguous()[order_I], (order_I // size).tolist()
        codes_IO = torch.empty(weights_IO.shape, dtype=torch.uint8, device="cpu")
        factor_II = inverse_factor(statistics, order_I, name, damping=self.damping, max_damping=self.max_damping, remedy=REMEDY)
        for start, stop in self._blocks(num_inputs, size):
            if not self.act_order and start % size == 0:
                inputs = slice(start, start + size)
                fitted = grid.fit(weights_IO[inputs].T, statistics.of_inputs(inputs))
                scales_GO[groups[start]], zeros_GO[groups[start]] = fitted.scales_OG[:, 0], fitted.zeros_OG[:, 0]
            codes_IO[start:stop], errors_BO = _round_block(
                weights_IO[start:stop],
                factor_II[start:stop, start:stop],
                scales_GO[groups[start:stop]],
                zeros_GO[groups[start:stop]],
                grid,
            )
            weights_IO[stop:].addmm_(factor_II[start:stop, stop:].T, errors_BO, alpha=-1)
        if not bool(errors_BO.isfinite().all()):  # an overflow reaches all later inputs
            raise CheckpointError(f"the errors of {show(name)} overflow in GPTQ", remedy=REMEDY)
        scales = GroupScales(scales_GO.T.contiguous(), zeros_GO.T.contiguous(), size)
        return grid.rows(in_order(codes_IO.T, order_I), scales)

    def _blocks(self, num_inputs: int, group_size: int) -> Iterator[tuple[int, int]]:
        """Yield the intervals of inputs between two updates of all later ones."""
        starts = set(range(0, num_inputs, self.block_size))
        if not self.act_order:  # a group's scales are those of its weights after all earlier inputs
            starts.update(range(0, num_inputs, group_size))
        return pairwise(sorted(starts | {num_inputs}))

    def _conflicts(self) -> list[Fault]:
        if self.max_damping < self.damping:
            return [Fault("max_damping", f"from {self.damping}, which is damping")]
        return []


def _round_block(weights_BO: Tensor, factor_BB: Tensor, scales_BO: Tensor, zeros_BO: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return the codes and the errors of a block's inputs, uint8 and float32 [B, O].

    An error is the difference that later inputs make up for, divided by the pivot.
    """
    codes_BO = torch.empty(weights_BO.shape, dtype=torch.uint8, device="cpu")
    errors_BO = torch.empty_like(weights_BO)
    before_BB, pivots = factor_BB.T.contiguous(), factor_BB.diagonal().tolist()
    inputs = zip(weights_BO.unbind(), scales_BO.unbind(), zeros_BO.unbind(), pivots, strict=True)
    for i, (weights_O, scales_O, zeros_O, pivot) in enumerate(inputs):
        corrected_O = torch.addmv(weights_O, errors_BO[:i].T, before_BB[i, :i], alpha=-1)
        code_O = grid.codes(corrected_O, scales_O, zeros_O)
        codes_BO[i] = code_O
        torch.div(corrected_O.sub_(code_O.sub_(zeros_O).mul_(scales_O)), pivot, out=errors_BO[i])
    return codes_BO, errors_BO


METHOD = Gptq
