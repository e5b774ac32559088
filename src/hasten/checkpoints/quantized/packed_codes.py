"""``WordPacking``: integer codes of a few bits in 32-bit words, lowest bits first.

::

    dense, 3 bits:      a00 a01 ... a09 a10'|''a10 a11 ...    a code may continue in the next word
    per word, 3 bits:   a00 a01 ... a09 00  |  a10 a11 ...    ⌊32 / bits⌋ codes a word, and unused high bits

Both are the same for 2, 4 and 8 bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, slots=True)
class WordPacking:
    bits: int  # of a code, at most 8
    dense: bool

    def num_words(self, num_codes: int) -> int:
        """Return the words that hold ``num_codes`` codes."""
        return -(-num_codes * self.bits // 32) if self.dense else -(-num_codes // (32 // self.bits))

    def aligned(self, start: int) -> tuple[int, int]:
        """Return the last code up to ``start`` that begins a word, and this word."""
        codes, words = (32, self.bits) if self.dense else (32 // self.bits, 1)
        return start // codes * codes, start // codes * words

    def unpack(self, words_RW: Tensor, num_codes: int) -> Tensor:
        """Return the first ``num_codes`` codes of each row, uint8. ``words_RW`` is int32."""
        if self.dense:
            num_rows, num_words = words_RW.shape
            # A copy in one dimension: strided rows, or a single one that counts as contiguous, cannot be viewed as bytes.
            return self._unpack_dense(
                words_RW.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).view(num_rows, 4 * num_words),
                num_codes,
            )
        per_word, mask = 32 // self.bits, (1 << self.bits) - 1
        codes = torch.empty((*words_RW.shape, per_word), dtype=torch.uint8, device=words_RW.device)
        for place in range(per_word):
            codes[..., place] = (words_RW >> (place * self.bits)) & mask
        return codes.flatten(1)[:, :num_codes]

    def _unpack_dense(self, bytes_RB: Tensor, num_codes: int) -> Tensor:
        shared = math.gcd(8, self.bits)
        per_unit, unit = 8 // shared, self.bits // shared  # codes and bytes after which the pattern repeats
        units = -(-num_codes // per_unit)
        bytes_RB = bytes_RB[:, : units * unit]
        bytes_RUB = pad(bytes_RB, (0, units * unit - bytes_RB.shape[1])).view(-1, units, unit)
        codes = torch.empty((len(bytes_RB), units, per_unit), dtype=torch.uint8, device=bytes_RB.device)
        for place in range(per_unit):
            byte, shift = divmod(place * self.bits, 8)
            code = bytes_RUB[..., byte] >> shift
            if shift + self.bits > 8:
                code |= bytes_RUB[..., byte + 1] << (8 - shift)
            codes[..., place] = code & ((1 << self.bits) - 1)
        return codes.flatten(1)[:, :num_codes]


def find_packing(bits: int, num_codes: int, num_words: int, *, prefer_dense: bool) -> WordPacking | None:
    """Return the packing that needs ``num_words`` words for ``num_codes`` codes; None: there is none.

    Rows of fewer than 150 codes of 3, 5, 6 or 7 bits may need as many words either way.
    """
    packings = [WordPacking(bits, dense) for dense in (prefer_dense, not prefer_dense)]
    return next((packing for packing in packings if packing.num_words(num_codes) == num_words), None)
