"""``unpack_bits`` and ``pack_bits``: every width, and the 3-bit codes that cross words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hasten.checkpoints.quantized.bit_packing import pack_bits, unpack_bits


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_come_lowest_bit_first(bits: int) -> None:
    words = np.random.default_rng(bits).integers(-(2**31), 2**31, (5, 6), dtype=np.int64)
    expected = []
    for row in words:
        number = sum((int(word) % 2**32) << (32 * index) for index, word in enumerate(row))
        expected.append([(number >> (bits * index)) % 2**bits for index in range(6 * 32 // bits)])
    codes = unpack_bits(torch.from_numpy(words.astype(np.int32)), bits)
    assert codes.dtype == torch.uint8
    assert codes.tolist() == expected


def test_three_words_hold_ten_codes_and_two_that_cross() -> None:
    """AutoGPTQ packs 32 codes of 3 bits as 10, one across, 10, one across, 10."""
    codes = np.random.default_rng(0).integers(0, 8, 32).tolist()
    words = [0, 0, 0]
    for index in range(10):
        words[0] |= codes[index] << (3 * index)
        words[1] |= codes[index + 11] << (3 * index + 1)
        words[2] |= codes[index + 22] << (3 * index + 2)
    words[0] |= (codes[10] & 3) << 30
    words[1] |= codes[10] >> 2 | (codes[21] & 1) << 31
    words[2] |= codes[21] >> 1
    signed = [word - 2**32 if word >= 2**31 else word for word in words]
    assert unpack_bits(torch.tensor(signed, dtype=torch.int32), 3).tolist() == codes


def test_leading_dimensions_are_kept() -> None:
    assert unpack_bits(torch.zeros(2, 4, 6, dtype=torch.int32), 3).shape == (2, 4, 64)


@pytest.mark.parametrize("num_codes", [1, 7, 32, 33, 96, 101])
@pytest.mark.parametrize("bits", range(1, 9))
def test_packed_codes_are_the_digits_of_a_number(bits: int, num_codes: int) -> None:
    codes = torch.from_numpy(np.random.default_rng(bits).integers(0, 2**bits, (3, num_codes, 2)).astype(np.uint8)).mT
    words = pack_bits(codes, bits)
    num_words = -(-num_codes * bits // 32)
    assert (words.dtype, words.shape) == (torch.int32, (3, 2, num_words)) and words.is_contiguous()
    for row, packed in zip(codes.flatten(0, 1).tolist(), words.flatten(0, 1).tolist(), strict=True):
        number = sum(code << (bits * index) for index, code in enumerate(row))
        assert sum((word % 2**32) << (32 * index) for index, word in enumerate(packed)) == number
