"""The next token of each row of logits, by the native kernel: what it wants to know, packed, and what it tells."""

from __future__ import annotations

import struct
from array import array
from typing import cast

import torch
from torch import Tensor

from hasten.ops.cpu.cpu import Cpu

_SETTINGS = struct.Struct("=Qfffi")  # hasten_draw_settings of hasten.h
# The kernel leaves rows of temperatures beyond its own bounds, which lie within these, undecided.
_COLDEST, _HOTTEST = 1e-30, 1e38


def sampling_settings(seed: int, temperature: float, top_p: float, min_p: float, top_k: int | None) -> bytes:
    """Of one row: temperature 0 is greedy, ``top_p`` 1, ``min_p`` 0 and ``top_k`` None keep every token."""
    if temperature != 0:
        temperature = min(max(temperature, _COLDEST), _HOTTEST)
    return _SETTINGS.pack(seed, temperature, 1 - top_p, min_p, min(top_k or 0, 2**31 - 1))


def sample_tokens(cpu: Cpu, logits_RV: Tensor, settings: bytes, keys: array[int]) -> tuple[list[int | None], list[int]]:
    """(tokens [R], the rows that are left undecided, whose token is None).

    ``settings`` are those of each row, end to end; ``keys`` are the sequence and the position of each row, 64 bits each.
    """
    rows, count = logits_RV.shape
    assert logits_RV.dtype == torch.float32 and logits_RV.stride(1) == 1 and logits_RV.device.type == "cpu"
    assert len(settings) == rows * _SETTINGS.size and len(keys) == 2 * rows
    tokens, decided = array("i", bytes(4 * rows)), array("b", bytes(rows))
    undecided = cpu.library.draw(
        cpu.handle,
        logits_RV.data_ptr(),
        rows,
        count,
        logits_RV.stride(0),
        settings,
        keys.buffer_info()[0],
        tokens.buffer_info()[0],
        decided.buffer_info()[0],
    )
    found = cast("list[int | None]", tokens.tolist())
    if not undecided:
        return found, []
    left = [row for row, sure in enumerate(decided) if not sure]
    for row in left:
        found[row] = None
    return found, left
