"""``unpack_bits``: all codes in a dense stream of 32-bit words."""

from __future__ import annotations

from torch import Tensor

from hasten.checkpoints.quantized.packed_codes import WordPacking


def unpack_bits(words: Tensor, bits: int) -> Tensor:
    """Return the codes of ``bits`` bits in words along the last dimension, uint8.

    The words are int32, and the lowest bits come first. A code of 3 bits may cross two words: 32 codes take 3 words, and the number
    of words is then a multiple of 3.
    """
    num_codes = words.shape[-1] * 32 // bits
    codes = WordPacking(bits, dense=True).unpack(words.reshape(-1, words.shape[-1]), num_codes)
    return codes.view(*words.shape[:-1], num_codes)
