"""1 minus the entropy of the next token over that of a uniform one (FastBERT, Liu et al., 2020, arXiv 2004.02178).

FastBERT leaves where its uncertainty is below a *speed*: that is a certainty above 1 - speed.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from hasten.early_exit.base import Reading


class Entropy:
    name: ClassVar[str] = "entropy"
    looks_back: ClassVar[bool] = False

    def __call__(self, reading: Reading) -> Tensor:
        logp_RV = reading.logits_RV.log_softmax(-1)
        entropy_R = -torch.nan_to_num(logp_RV.exp() * logp_RV).sum(-1)  # 0 · -inf is 0
        return (1.0 - entropy_R / math.log(max(2, logp_RV.shape[-1]))).clamp(0.0, 1.0)
