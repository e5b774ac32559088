"""``unpack_bits`` and ``pack_bits``: codes in a dense stream of 32-bit words, lowest bits first.

A code of 3, 5, 6 or 7 bits may cross two words: 32 codes take ``bits`` words.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from hasten.checkpoints.quantized.packed_codes import WordPacking


def unpack_bits(words: Tensor, bits: int) -> Tensor:
    """Return all codes of ``bits`` bits in words along the last dimension, uint8.

    The words are int32. With 3 bits their number is a multiple of 3.
    """
    num_codes = words.shape[-1] * 32 // bits
    codes = WordPacking(bits, dense=True).unpack(words.reshape(-1, words.shape[-1]), num_codes)
    return codes.view(*words.shape[:-1], num_codes)


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Return the words that hold the codes along the last dimension, int32.

    The codes are uint8, of at most ``bits`` bits. Zeros fill up the last word.
    """
    shared = math.gcd(8, bits)
    per_unit, unit = 8 // shared, bits // shared  # codes and bytes after which the pattern repeats
    num_words = -(-codes.shape[-1] * bits // 32)
    num_units = -(-4 * num_words // unit)
    units = pad(codes, (0, num_units * per_unit - codes.shape[-1])).reshape(*codes.shape[:-1], num_units, per_unit)
    packed = torch.zeros((*units.shape[:-1], unit), dtype=torch.uint8, device=codes.device)
    for place in range(per_unit):
        byte, shift = divmod(place * bits, 8)
        packed[..., byte] |= units[..., place] << shift
        if shift + bits > 8:
            packed[..., byte + 1] |= units[..., place] >> (8 - shift)
    return packed.flatten(-2)[..., : 4 * num_words].contiguous().view(torch.int32)
