"""Tensors whose memory native code reads or writes. Only this file takes the address of a tensor.

PyTorch has ambient settings: the default dtype, the default device, ``with torch.device("meta")``. Native code sees plain memory,
so a tensor that follows one of them would be read as something else. Every tensor is made with an explicit dtype and device here,
or checked when its address is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

CPU = torch.device("cpu")


def new_rows(rows: int, width: int) -> Tensor:
    """Return an uninitialised float32 tensor [rows, width] on the CPU."""
    return torch.empty(rows, width, dtype=torch.float32, device=CPU)


def float_rows(values: Tensor) -> Tensor:
    """Return the values as contiguous float32 on the CPU, without a copy where they are."""
    return values.to(device=CPU, dtype=torch.float32).contiguous()


def padded_vector(values: Tensor, size: int, multiple: int) -> Tensor:
    """Return a float32 copy of a vector [size], with zeros up to a multiple of ``multiple``."""
    assert values.shape == (size,), (values.shape, size)
    padded = torch.zeros(-(-size // multiple) * multiple, dtype=torch.float32, device=CPU)
    padded[:size] = values.detach()
    return padded


def address(values: Tensor, dtype: torch.dtype, *shape: int) -> int:
    """Return the address of a contiguous tensor of this dtype and shape on the CPU."""
    assert values.is_contiguous(), values.stride()
    return strided_address(values, dtype, *shape)


def strided_address(values: Tensor, dtype: torch.dtype, *shape: int) -> int:
    """Return the address of a tensor of this dtype and shape on the CPU; the caller passes its strides on."""
    assert values.dtype == dtype and values.is_cpu and values.shape == shape, (values.dtype, values.device, values.shape)
    return values.data_ptr()
