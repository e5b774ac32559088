"""Sampling of one token per row of logits by the native kernel."""

from __future__ import annotations

import math
import struct
from array import array

import torch
from torch import Tensor

from hasten.ops.cpu.cpu import Cpu
from hasten.ops.cpu.native_tensor import strided_address

_SETTINGS = struct.Struct("=Qfffi")  # hasten_sampling_params of hasten.h
# Bounds that float32 holds. The kernel has narrower ones and leaves rows of other temperatures undecided.
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 1e-30, 1e38

# The settings of a row that the kernel leaves undecided.
UNDECIDED = _SETTINGS.pack(0, math.inf, 0.0, 0.0, 0)


def pack_settings(seed: int, temperature: float, top_p: float, min_p: float, top_k: int | None) -> bytes:
    """Return the settings of one row for ``sample_tokens``.

    Temperature 0 is greedy. ``top_p`` 1, ``min_p`` 0 and ``top_k`` None keep every token.
    """
    if temperature != 0:
        temperature = min(max(temperature, _MIN_TEMPERATURE), _MAX_TEMPERATURE)
    return _SETTINGS.pack(seed, temperature, 1 - top_p, min_p, min(top_k or 0, 2**31 - 1))


def sample_tokens(cpu: Cpu, logits_RV: Tensor, settings: bytes, keys: array[int]) -> list[int | None]:
    """Return the token of each row, None for rows that are left undecided.

    ``settings`` is the concatenation of each row's settings. ``keys`` holds the sequence and the position of each row, int64.
    """
    num_rows, num_tokens = logits_RV.shape
    assert logits_RV.stride(1) == 1, logits_RV.stride()
    assert len(settings) == num_rows * _SETTINGS.size and len(keys) == 2 * num_rows
    token_ids, is_decided = array("i", bytes(4 * num_rows)), array("b", bytes(num_rows))
    cpu.library.sample_tokens(
        cpu.handle,
        strided_address(logits_RV, torch.float32, num_rows, num_tokens),
        num_rows,
        num_tokens,
        logits_RV.stride(0),
        settings,
        keys.buffer_info()[0],
        token_ids.buffer_info()[0],
        is_decided.buffer_info()[0],
    )
    return [token_id if decided else None for token_id, decided in zip(token_ids, is_decided, strict=True)]
