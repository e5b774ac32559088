"""``read_plain``: a tensor of a GGUF file that is not quantised."""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.checkpoints.gguf.container import GgufTensor
from hasten.checkpoints.gguf.mapped_files import MappedFiles

PLAIN_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def read_plain(tensor: GgufTensor, files: MappedFiles) -> Tensor:
    """Return the tensor in its own dtype, as a view of the file where possible.

    Raises like ``MappedFiles.read``.
    """
    raw, dtype = files.read(tensor), PLAIN_DTYPES[tensor.type.name]
    if tensor.start % dtype.itemsize:
        raw = raw.clone()  # a file may align its tensors to less than a number
    return raw.view(dtype).view(tensor.shape)
