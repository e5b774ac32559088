"""FP4 (e2m1) numbers and E8M0 scales, which MXFP4, MXFP8 and NVFP4 store.

Source: OCP Microscaling Formats (MX) specification 1.0.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Twice an FP4 number is an integer from -12 to 12, so it is a code whose zero is 12 and whose scale is half the scale.
FP4_ZERO = 12
_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12)  # magnitudes; the fourth bit is the sign


def fp4_codes(pairs_RB: Tensor) -> Tensor:
    """Return ``2 * number + FP4_ZERO`` of two numbers a byte, low half first, uint8 [R, 2 B]."""
    doubled = [FP4_ZERO + sign * size for sign in (1, -1) for size in _DOUBLED]
    table = torch.tensor([[doubled[byte & 15], doubled[byte >> 4]] for byte in range(256)], dtype=torch.uint8, device="cpu")
    return table[pairs_RB.int()].flatten(1)


def e8m0_scales(exponents: Tensor) -> Tensor:
    """Return 2 ** (e - 127), float32; infinity for e = 255, which stands for NaN."""
    bits = exponents.int()
    # e = 0 is 2 ** -127, a subnormal number of float32.
    return torch.where(bits == 0, 1 << 22, bits << 23).view(torch.float32)
