"""A trained guess at whether the whole model would choose the same token (Schuster et al., 2022): one product of a vector."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from hasten.early_exit.base import Reading


class Classifier:
    name: ClassVar[str] = "classifier"
    looks_back: ClassVar[bool] = False

    def __call__(self, reading: Reading) -> Tensor:
        return reading.exit.agreement_logit(reading.hidden_RE).sigmoid()
