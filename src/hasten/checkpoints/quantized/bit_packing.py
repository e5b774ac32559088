"""``unpack_bits``: the codes in a stream of 32-bit words."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def unpack_bits(words: Tensor, bits: int) -> Tensor:
    """Return the codes of ``bits`` bits in words along the last dimension, uint8.

    The words are int32, and the lowest bits come first. A code of 3 bits may cross two words: 32 codes take 3 words, and the number
    of words is then a multiple of 3.
    """
    period = math.lcm(bits, 32) // 32  # words
    count = period * 32 // bits  # codes in a period
    chunks = words.reshape(*words.shape[:-1], -1, period)
    codes = torch.empty((*chunks.shape[:-1], count), dtype=torch.uint8, device=words.device)
    for index in range(count):
        word, shift = divmod(index * bits, 32)
        code = chunks[..., word] >> shift  # the sign fills the upper bits
        low_bits = 32 - shift
        if low_bits < bits:
            code = (code & ((1 << low_bits) - 1)) | (chunks[..., word + 1] << low_bits)
        codes[..., index] = code & ((1 << bits) - 1)
    return codes.flatten(-2)
