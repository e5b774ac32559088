"""``CountedProducts``: every matrix product of a run of PyTorch, by the shapes of its operands."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


@dataclass(frozen=True)
class Product:
    batch: int  # 1: a product of two matrices
    rows: int
    inner: int
    columns: int
    bias: int  # elements

    @property
    def multiply_adds(self) -> int:
        return self.batch * self.rows * self.inner * self.columns


class CountedProducts(TorchDispatchMode):
    """Counts below autograd and ``F.linear``, where all products of matrices are one of four operations."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.products: list[Product] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (aten.mm.default, aten.addmm.default):
            *bias, left, right = args[:3] if function is aten.addmm.default else args[:2]
            self.products.append(Product(1, *left.shape, right.shape[1], sum(math.prod(b.shape) for b in bias)))
        elif function in (aten.bmm.default, aten.baddbmm.default):
            left, right = args[-2:]
            batch, rows, inner = left.shape
            if right.untyped_storage().data_ptr() in self.weights:  # one matrix, seen once per sequence
                batch, rows = 1, batch * rows
            self.products.append(Product(batch, rows, inner, right.shape[2], 0))
        else:
            assert "scaled_dot_product" not in str(function), "attention is eager"
        return function(*args, **(kwargs or {}))
