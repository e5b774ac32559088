"""Divides the logits by the temperature. Greedy rows (temperature 0) are never warped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.row import SamplingRow
from hasten.sampling.row_tensors import column

# Below this temperature the quotient may overflow float32. The largest logit is then first subtracted from the row, which
# changes no probability.
LOW_TEMPERATURE = 1e-4


@dataclass(frozen=True, slots=True)
class Temperature:
    def applies(self, params: SamplingParams) -> bool:
        return params.temperature not in (0, 1)

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Write to the argument and return it.

        Temperatures below the smallest normal float32 act as that number.
        """
        temperatures = [row.params.temperature for row in rows]
        temperature_R1 = column(temperatures, logits_RV)
        if min(temperatures) < LOW_TEMPERATURE:
            top_R1 = logits_RV.amax(dim=1, keepdim=True)
            logits_RV.sub_(torch.where((temperature_R1 < LOW_TEMPERATURE) & top_R1.isfinite(), top_R1, 0.0))
        return logits_RV.div_(temperature_R1.clamp_(min=torch.finfo(logits_RV.dtype).tiny))
