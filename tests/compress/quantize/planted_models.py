"""Checkpoints with the function of another one and channels that are hard to quantise.

Some channels of every norm's output are multiplied by a power of two, and the weights that read them are divided by it. Powers of
two are exact in every dtype, so the logits are those of the source.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hasten.checkpoints.reader import Checkpoint
from hasten.checkpoints.shards import SINGLE
from hasten.models.layer_stream import LayerStream
from hasten.models.weights import WeightSource

SALIENT_FACTOR, SALIENT_SHARE = 32.0, 1 / 32
OUTLIER_FACTOR, OUTLIER_SHARE = 128.0, 1 / 64
_READERS = {"attention_norm": "attention.qkv", "mlp_norm": "mlp.up"}


def write_salient(folder: Path, source: Path, seed: int = 0) -> Path:
    """Write a model whose small weights matter most: for weights of 4 bits in groups of 128. Return ``folder``."""
    return _write(folder, source, SALIENT_FACTOR, SALIENT_SHARE, seed)


def write_outliers(folder: Path, source: Path, seed: int = 0) -> Path:
    """Write a model with outlier channels of activations: for activations of 8 bits with one scale per token. Return ``folder``."""
    return _write(folder, source, OUTLIER_FACTOR, OUTLIER_SHARE, seed)


def _write(folder: Path, source: Path, factor: float, share: float, seed: int) -> Path:
    stream = LayerStream.open(Checkpoint.open(source))
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = {name: tensor for file in sorted(source.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    generator = torch.Generator().manual_seed(seed)
    for index in range(stream.spec.num_layers):
        for norm, reader in _READERS.items():
            size = stream.spec.hidden_size
            factors = torch.ones(size)
            factors[torch.randperm(size, generator=generator)[: max(1, round(size * share))]] = factor
            for weight in stream.layer_sources(index):
                if weight.target.startswith(f"{norm}."):
                    tensors[weight.name] = _scaled(tensors[weight.name], factors)
                elif weight.target == f"{reader}.format.weight":
                    tensors[weight.name] = _scaled(tensors[weight.name], _per_input(weight, 1 / factors))
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    return folder


def _per_input(weight: WeightSource, factors: Tensor) -> Tensor:
    return factors[:, None] if weight.transposed else factors


def _scaled(tensor: Tensor, factors: Tensor) -> Tensor:
    return (tensor * factors.to(tensor.dtype)).contiguous()
