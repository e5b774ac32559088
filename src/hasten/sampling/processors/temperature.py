"""Divides the logits: below 1 the likely tokens become likelier, above 1 less so. Greedy rows (0) are never warped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.column import column
from hasten.sampling.row import SamplingRow
from hasten.sampling.shortlist import Shortlist

# Below this, logits over temperature may leave float32. A row is then first shifted so that its largest logit is 0, which
# changes no probability; temperatures under the smallest normal float32 act like that number.
COLD = 1e-4


@dataclass(frozen=True, slots=True)
class Temperature:
    def applies(self, params: SamplingParams) -> bool:
        return params.temperature not in (0, 1)

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Writes to its argument."""
        temperatures = [row.params.temperature for row in rows]
        if min(temperatures) < COLD:
            top_R1 = logits_RV.amax(dim=1, keepdim=True)
            shifted_R1 = (column(temperatures, logits_RV) < COLD) & top_R1.isfinite()
            logits_RV.sub_(torch.where(shifted_R1, top_R1, 0.0))
        tiny = torch.finfo(logits_RV.dtype).tiny
        return logits_RV.div_(column(temperatures, logits_RV).clamp_(min=tiny))

    def shorten(self, listed: Shortlist, rows: Sequence[SamplingRow]) -> None:
        """Rows so cold that they need the shift are left to the call."""
        temperature_R = np.array([row.params.temperature for row in rows])
        listed.decided_R &= temperature_R >= COLD
        scale_R = np.maximum(temperature_R, COLD).astype(np.float32)
        listed.value_RK /= scale_R[:, None]
        listed.floor_R /= scale_R
        listed.scale_R = scale_R
