"""``BLOCK_FORMATS``: decode the eight block types of ggml that hasten reads into grouped rows.

A block holds 32 or 256 consecutive weights of a row: float16 scales, and codes whose bits are spread over several fields.
The layouts are those of ggml's ``ggml-common.h`` and ``ggml-quants.c``. Weights equal ggml's bit for bit.

Legend: N blocks, B bytes of a block, G groups of a block, W weights of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.layers.formats.quant_spec import QuantSpec
from hasten.layers.formats.stored_matrix import GroupedRows, Nested

# Codes uint8 [N, W], scales and offsets of the groups. Offsets: or None.
Values = Tensor | Nested  # float32 [N, G], or int8 [N, G] with float16 [N, 1]
Decoded = tuple[Tensor, Values, Values | None]


@dataclass(frozen=True, slots=True)
class BlockFormat:
    spec: QuantSpec
    decode: Callable[[Tensor], Decoded]

    def rows(self, blocks_NB: Tensor, num_rows: int) -> GroupedRows:
        """Decode the blocks of ``num_rows`` whole rows, uint8 [N, B]."""
        codes_NW, *values = self.decode(blocks_NB)
        nested = [_nested_rows(part, num_rows) if isinstance(part, Nested) else None for part in values]
        plain = [part.values() if isinstance(part, Nested) else part for part in values]
        scales_OG, offsets_OG = (None if part is None else part.reshape(num_rows, -1) for part in plain)
        assert scales_OG is not None
        codes_OI, group_size = codes_NW.reshape(num_rows, -1), self.spec.group_size or 0
        return GroupedRows(codes_OI, scales_OG, group_size, self.spec.zero or 0, offsets_OG, *nested)


def _nested_rows(values: Nested, num_rows: int) -> Nested:
    return Nested(values.steps_OG.reshape(num_rows, -1), values.factors_OB.reshape(num_rows, -1))


def _q4_0(blocks_NB: Tensor) -> Decoded:
    return _nibbles(blocks_NB[:, 2:18], 16), _halves(blocks_NB[:, 0:2]), None


def _q4_1(blocks_NB: Tensor) -> Decoded:
    return _nibbles(blocks_NB[:, 4:20], 16), _halves(blocks_NB[:, 0:2]), _halves(blocks_NB[:, 2:4])


def _q5_0(blocks_NB: Tensor) -> Decoded:
    return _nibbles(blocks_NB[:, 6:22], 16) | _fifth_bits(blocks_NB[:, 2:6]), _halves(blocks_NB[:, 0:2]), None


def _q5_1(blocks_NB: Tensor) -> Decoded:
    codes_NW = _nibbles(blocks_NB[:, 8:24], 16) | _fifth_bits(blocks_NB[:, 4:8])
    return codes_NW, _halves(blocks_NB[:, 0:2]), _halves(blocks_NB[:, 2:4])


def _q8_0(blocks_NB: Tensor) -> Decoded:
    return blocks_NB[:, 2:34] ^ 0x80, _halves(blocks_NB[:, 0:2]), None  # int8 + 128


def _q4_k(blocks_NB: Tensor) -> Decoded:
    return _nibbles(blocks_NB[:, 16:144], 32), *_k_scales(blocks_NB)


def _q5_k(blocks_NB: Tensor) -> Decoded:
    # Byte l of the field holds the fifth bits of weight l of all eight groups.
    high = blocks_NB[:, 16:48].contiguous()
    fifth = torch.stack([(high >> group & 1) << 4 for group in range(8)], dim=1)  # [N, G, 32]
    return _nibbles(blocks_NB[:, 48:176], 32) | fifth.flatten(1), *_k_scales(blocks_NB)


def _q6_k(blocks_NB: Tensor) -> Decoded:
    low_NW = _nibbles(blocks_NB[:, :128], 64)
    high = blocks_NB[:, 128:192].contiguous().view(-1, 2, 32)
    high = torch.stack([(high >> shift & 3) << 4 for shift in (0, 2, 4, 6)], dim=2)  # [N, 2, 4, 32]
    return low_NW | high.flatten(1), Nested(blocks_NB[:, 192:208].view(torch.int8), _float16(blocks_NB[:, 208:210])), None


def _format(name: str, bits: int, group_size: int, zero: int | None, decode: Callable[[Tensor], Decoded]) -> BlockFormat:
    is_nested = name.endswith("_K")
    spec = QuantSpec(scheme=name, kind="int", bits=bits, granularity="group", group_size=group_size, zero=zero, is_nested=is_nested)
    return BlockFormat(spec, decode)


BLOCK_FORMATS = {
    "Q4_0": _format("Q4_0", 4, 32, 8, _q4_0),
    "Q4_1": _format("Q4_1", 4, 32, None, _q4_1),
    "Q5_0": _format("Q5_0", 5, 32, 16, _q5_0),
    "Q5_1": _format("Q5_1", 5, 32, None, _q5_1),
    "Q8_0": _format("Q8_0", 8, 32, 128, _q8_0),
    "Q4_K": _format("Q4_K", 4, 32, None, _q4_k),
    "Q5_K": _format("Q5_K", 5, 32, None, _q5_k),
    "Q6_K": _format("Q6_K", 6, 16, 32, _q6_k),
}


def _spread_table() -> Tensor:
    """Return for each byte its eight bits as bit 4 of eight bytes, int64 [256]."""
    bits = [[(byte >> bit & 1) << 4 for bit in range(8)] for byte in range(256)]
    return torch.tensor(bits, dtype=torch.uint8, device="cpu").view(torch.int64).flatten()


_SPREAD = _spread_table()


def _halves(bytes_NB: Tensor) -> Tensor:
    """Return float16 fields as float32. [N, B/2]"""
    return _float16(bytes_NB).float()


def _float16(bytes_NB: Tensor) -> Tensor:
    # A copy, because numbers of a mapped file may lie at odd addresses.
    return bytes_NB.clone(memory_format=torch.contiguous_format).view(torch.float16)


def _nibbles(bytes_NB: Tensor, run: int) -> Tensor:
    """Return the low halves of ``run`` bytes, then the high halves of the same bytes, and so on. [N, 2 B]"""
    runs = bytes_NB.contiguous().view(len(bytes_NB), -1, run)
    return torch.stack((runs & 15, runs >> 4), dim=2).flatten(1)


def _fifth_bits(bytes_N4: Tensor) -> Tensor:
    """Return bit j of a 32-bit field as bit 4 of weight j. [N, 32]"""
    spread = _SPREAD.index_select(0, bytes_N4.flatten().int())  # [4 N]
    return spread.view(-1, 4).view(torch.uint8)


def _k_scales(blocks_NB: Tensor) -> tuple[Nested, Nested]:
    """Return the scales and offsets of Q4_K and Q5_K. [N, 8] each

    Eight 6-bit scales and eight 6-bit minima share 12 bytes: the first four of each are whole, the others are in two pieces.
    An offset is minus its minimum.
    """
    first, second, third = blocks_NB[:, 4:16].reshape(-1, 3, 4).unbind(1)
    scales = torch.cat((first & 63, (third & 15) | (first >> 6 << 4)), dim=1)
    minima = torch.cat((second & 63, (third >> 4) | (second >> 6 << 4)), dim=1)
    return (
        Nested(scales.view(torch.int8), _float16(blocks_NB[:, 0:2])),
        Nested(minima.view(torch.int8), -_float16(blocks_NB[:, 2:4])),
    )
