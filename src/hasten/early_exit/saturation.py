"""How little the last layer turned the state: its cosine with the state before (Schuster et al., 2022). Needs no training."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from hasten.early_exit.base import Reading


class Saturation:
    name: ClassVar[str] = "saturation"
    looks_back: ClassVar[bool] = True

    def __call__(self, reading: Reading) -> Tensor:
        assert reading.before_RE is not None
        now_RE, before_RE = reading.hidden_RE.float(), reading.before_RE.float()
        product_R = (now_RE * before_RE).sum(-1)
        norms_R = (now_RE.square().sum(-1) * before_RE.square().sum(-1)).sqrt()
        return (product_R / norms_R.clamp_min(1e-30)).clamp(0.0, 1.0)
