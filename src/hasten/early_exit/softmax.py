"""The gap between the two likeliest tokens (Schuster et al., 2022): dear, because every exit reads the whole vocabulary."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from hasten.early_exit.base import Reading


class Softmax:
    name: ClassVar[str] = "softmax"
    looks_back: ClassVar[bool] = False

    def __call__(self, reading: Reading) -> Tensor:
        top_R2 = reading.logits_RV.softmax(-1).topk(2).values
        return top_R2[:, 0] - top_R2[:, 1]
