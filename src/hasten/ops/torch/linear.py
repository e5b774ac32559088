"""``WideningLinear``: the matrix product for processors without bf16 arithmetic.

There, PyTorch's bf16 product runs several times slower than its float32 one (1,024 rows of a 6,144 x 1,024 matrix: 213 ms,
widened 46 ms, on two AVX-512 cores). ``WideningLinear`` widens the weights a tile at a time, while the tile is in the cache, and
multiplies in float32. The weights are still read from memory as bf16, and nothing is rounded before the sum is complete.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TILE_BYTES = 1 << 20  # of widened weights: half of one core's second-level cache
# Up to here PyTorch streams the weights as they are at least as fast; from 4 rows on widening wins (1.5 times, at 1,024 4 times).
PLAIN_ROWS = 2


class WideningLinear:
    """``Ops.linear``. It keeps one scratch tile per width, so only one thread may call it.

    Widening is not differentiable, so products are plain while gradients are recorded.
    """

    def __init__(self) -> None:
        self._tiles: dict[int, Tensor] = {}

    def __call__(self, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        is_16_bit = weight_OI.dtype in (torch.bfloat16, torch.float16)
        if not is_16_bit or torch.is_grad_enabled():
            return F.linear(x_TI, weight_OI, bias_O)
        if len(x_TI) == 1 and bias_O is None:
            # The matrix-vector routine streams 15 to 21 GB/s where the general product does 13 to 15, but rounds before a bias.
            return torch.mv(weight_OI, x_TI[0])[None]
        if len(x_TI) <= PLAIN_ROWS:
            return F.linear(x_TI, weight_OI, bias_O)
        out_features, in_features = weight_OI.shape
        if in_features not in self._tiles:
            rows = max(64, TILE_BYTES // 4 // in_features)
            with torch.inference_mode(False):  # later calls write to it in any mode
                self._tiles[in_features] = torch.empty(rows, in_features, dtype=torch.float32, device=weight_OI.device)
        tile_JI = self._tiles[in_features]
        x_float_TI = x_TI.float()
        out_TO = torch.empty(len(x_TI), out_features, dtype=x_TI.dtype, device=x_TI.device)
        for begin in range(0, out_features, len(tile_JI)):
            end = begin + len(tile_JI)
            part = weight_OI[begin:end]
            widened = tile_JI[: len(part)].copy_(part)
            bias = None if bias_O is None else bias_O[begin:end].float()
            out_TO[:, begin:end] = F.linear(x_float_TI, widened, bias)
        return out_TO
