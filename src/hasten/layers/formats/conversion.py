"""``Conversion``: the error of a matrix that is kept in another form than its checkpoint's."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class Conversion:
    """Sums over the rows loaded so far."""

    squared_error: float = 0.0
    squared_norm: float = 0.0

    def count(self, exact: Tensor, kept: Tensor) -> None:
        """Count rows of the checkpoint, and the same rows as they are kept. Any shape, float32 or wider."""
        self.squared_norm += float(exact.norm().double() ** 2)
        self.squared_error += float((kept - exact).norm().double() ** 2)

    @property
    def relative_error(self) -> float | None:
        """The Frobenius norm of the error over that of the matrix; None before loading."""
        return (self.squared_error / self.squared_norm) ** 0.5 if self.squared_norm else None
