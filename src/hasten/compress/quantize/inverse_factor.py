"""``inverse_factor``: the factor of an inverse Hessian.

By it, later inputs make up for a change of an earlier one in GPTQ and SparseGPT.

Shape suffix: I inputs, in the order in which they change.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.compress.quantize.statistics import InputStatistics, is_finite
from hasten.core.errors import CheckpointError, show

SOLVED_SIZE = 256  # up to which a triangle is inverted at once


def inverse_factor(
    statistics: InputStatistics, order_I: Tensor, name: str, *, damping: float, max_damping: float, remedy: str
) -> Tensor:
    """Return the upper factor U of the damped Hessian's inverse, Uᵀ U = H⁻¹, with inputs in ``order_I``.

    ``damping`` times the mean of the diagonal is added to it, and doubles up to ``max_damping`` until the Hessian factorises.
    Inputs that are always 0 get a diagonal of 1. At most three matrices of its size are in memory: 2.5 GB for 14,336 inputs.

    ``name`` is the weight's. Raises ``CheckpointError`` if the Hessian does not factorise.
    """
    backward_I = order_I.flip(0)
    damped_II = statistics.hessian_II[backward_I][:, backward_I]
    diagonal_I = damped_II.diagonal().clone()
    while damping <= max_damping:
        # The mean is 0 only if all inputs are; any diagonal serves then.
        damped_II.diagonal().copy_(torch.where(diagonal_I == 0, 1, diagonal_I + damping * diagonal_I.mean()))
        lower_II, info = torch.linalg.cholesky_ex(damped_II)
        if int(info) == 0:
            # H = R Rᵀ with R upper, from the factor of the flipped matrix; so U = R⁻¹.
            factor_II: Tensor = lower_II.flip(0, 1)
            del lower_II
            _invert(factor_II)
            if is_finite(factor_II):
                return factor_II
        damping *= 2
    got = f"a damping of up to {max_damping:g}"
    raise CheckpointError(f"the Hessian of {show(name)} does not factorise", got=got, remedy=remedy)


def _invert(upper_II: Tensor) -> None:
    """Invert an upper triangle in place.

    By halves it takes a third of the operations of solving for the unit matrix.
    """
    size = len(upper_II)
    if size <= SOLVED_SIZE:
        unit_II = torch.eye(size, dtype=upper_II.dtype, device="cpu")
        upper_II.copy_(torch.linalg.solve_triangular(upper_II, unit_II, upper=True))
        return
    half = size // 2
    first, second, corner = upper_II[:half, :half], upper_II[half:, half:], upper_II[:half, half:]
    _invert(first)
    _invert(second)
    corner.copy_(first @ (corner @ second)).neg_()
