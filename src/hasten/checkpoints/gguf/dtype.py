"""``choose_dtype``: the dtype that a GGUF model is computed in, where the user names none."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from hasten.checkpoints.gguf.blocks import BLOCK_FORMATS
from hasten.checkpoints.gguf.container import GgufTensor
from hasten.checkpoints.gguf.mapped_files import MappedFiles
from hasten.checkpoints.gguf.plain_tensor import read_plain

DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16"}
_HALF_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16}  # the first that keeps every weight is chosen
_MAX_VECTOR = 2**20  # values; the vectors of a model have its hidden size, or that of its MLP


def choose_dtype(tensors: Iterable[GgufTensor], files: MappedFiles) -> str:
    """Return the dtype of most weights, or one for what is not quantised where matrices are.

    That is the first of bfloat16, float16 and float32 that keeps each of these tensors exactly. A matrix needs its own type. A
    vector needs one that holds its values: converters store vectors in F32, whatever the type of the model was. Only vectors are
    read. Raises ``CheckpointError`` like ``MappedFiles.read``.
    """
    tensors = list(tensors)
    plain = [tensor for tensor in tensors if tensor.type.name not in BLOCK_FORMATS]
    if len(plain) == len(tensors):
        sizes: dict[str, int] = {}
        for tensor in tensors:
            sizes[tensor.type.name] = sizes.get(tensor.type.name, 0) + tensor.nbytes
        return DTYPE_NAMES.get(max(sizes, key=lambda name: sizes[name], default=""), "float32")
    fitting = (name for name in _HALF_DTYPES if all(_keeps(name, tensor, files) for tensor in plain))
    return DTYPE_NAMES.get(next(fitting, ""), "float32")


def _keeps(name: str, tensor: GgufTensor, files: MappedFiles) -> bool:
    """Whether the type ``name`` holds the weights of a tensor without rounding them."""
    if tensor.type.name == name:
        return True
    if len(tensor.shape) > 1 or math.prod(tensor.shape) > _MAX_VECTOR:
        return False
    values = read_plain(tensor, files)
    return torch.equal(values.to(_HALF_DTYPES[name]).to(values.dtype), values)
