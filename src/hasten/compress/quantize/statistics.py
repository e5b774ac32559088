"""``InputStatistics``: what calibration measures of the inputs of a matrix.

Shape suffixes: T tokens · I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core.errors import CheckpointError, show

ROWS = 512  # of the lower triangle that one product computes; smaller products are slower


@dataclass(slots=True)
class InputStatistics:
    """Statistics of the inputs x [I] of one matrix over the calibration tokens, float32."""

    num_tokens: int
    absmax_I: Tensor  # largest |x|
    abs_sum_I: Tensor  # sum of |x|
    # Sum of x xᵀ, of which only the lower triangle is valid: it takes about half the products. None: not measured.
    square_sum_II: Tensor | None
    square_sum_I: Tensor  # sum of x²

    @classmethod
    def empty(cls, in_features: int, *, with_hessian: bool) -> InputStatistics:
        """Return the statistics of no tokens. ``with_hessian``: measure ``square_sum_II``, too."""
        zeros_I = torch.zeros(in_features, dtype=torch.float32, device="cpu")
        square_sum_II = torch.zeros(in_features, in_features, dtype=torch.float32, device="cpu") if with_hessian else None
        return cls(0, zeros_I, zeros_I.clone(), square_sum_II, zeros_I.clone())

    def add(self, x_TI: Tensor) -> None:
        """Count the inputs of some tokens, float32."""
        magnitudes_TI = x_TI.abs()
        self.num_tokens += len(x_TI)
        self.absmax_I = torch.maximum(self.absmax_I, magnitudes_TI.amax(0))
        self.abs_sum_I += magnitudes_TI.sum(0)
        self.square_sum_I += magnitudes_TI.square_().sum(0)
        if self.square_sum_II is not None:
            for start in range(0, x_TI.shape[1], ROWS):
                stop = min(start + ROWS, x_TI.shape[1])
                self.square_sum_II[start:stop, :stop].addmm_(x_TI[:, start:stop].T, x_TI[:, :stop])

    def check(self, name: str) -> None:
        """Refuse statistics of no tokens, and of inputs that are NaN, infinite or too large to square.

        ``name`` is the weight's. Raises ``CheckpointError``.
        """
        if self.num_tokens == 0:
            raise CheckpointError(
                f"no calibration token reached {show(name)}", remedy="Calibrate on more text, or add the matrix to ignore"
            )
        if not all(is_finite(sums) for sums in (self.absmax_I, self.square_sum_I, self.square_sum_II) if sums is not None):
            raise CheckpointError(f"the inputs of {show(name)} are not finite in calibration", remedy="Mend the checkpoint")

    @property
    def mean_abs_I(self) -> Tensor:
        """The mean of |x|."""
        return self.abs_sum_I / max(1, self.num_tokens)

    @property
    def norms_I(self) -> Tensor:
        """The Euclidean norm of each input over all tokens."""
        return self.square_sum_I.sqrt()

    @property
    def hessian_II(self) -> Tensor:
        """The mean of x xᵀ. Half the Hessian of a row's mean squared output error; GPTQ's H is its multiple."""
        assert self.square_sum_II is not None, "measured without the Hessian"
        lower_II = self.square_sum_II.tril() / max(1, self.num_tokens)
        return lower_II + lower_II.tril(-1).T

    def divided(self, scales_I: Tensor) -> InputStatistics:
        """Return the statistics of the inputs x / ``scales_I``."""
        squares = None if self.square_sum_II is None else self.square_sum_II / scales_I[:, None] / scales_I[None, :]
        sums = self.abs_sum_I / scales_I, squares, self.square_sum_I / scales_I.square()
        return InputStatistics(self.num_tokens, self.absmax_I / scales_I, *sums)

    def of_inputs(self, inputs: slice) -> InputStatistics:
        """Return the statistics of some of the inputs."""
        squares = None if self.square_sum_II is None else self.square_sum_II[inputs, inputs]
        sums = self.abs_sum_I[inputs], squares, self.square_sum_I[inputs]
        return InputStatistics(self.num_tokens, self.absmax_I[inputs], *sums)


def is_finite(matrix: Tensor) -> bool:
    """Return whether all numbers are finite. Makes no copy of the matrix."""
    return all(bool(end.isfinite()) for end in matrix.aminmax())
