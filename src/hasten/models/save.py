"""``write_decoder``: save a decoder as a checkpoint of its family."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.checkpoints.shards import SINGLE
from hasten.checkpoints.write_tensors import write_tensors
from hasten.models.decoder import Decoder
from hasten.models.family import ModelFamily


def write_decoder(
    folder: Path,
    decoder: Decoder,
    family: ModelFamily,
    config: Mapping[str, Any],
    dtype: torch.dtype,
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a folder that transformers and hasten load. All weights are dense.

    ``extra``: further tensors by name.
    """
    tensors: dict[str, Tensor] = {name: tensor.detach().to(dtype, copy=True) for name, tensor in (extra or {}).items()}
    for source in family.weights(decoder.spec):
        tensor = source.rows(decoder).detach()
        # A copy, because rows of one parameter share memory and safetensors refuses shared memory.
        tensors[source.name] = (tensor.T if source.transposed else tensor).to(dtype, copy=True).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(tensors, folder / SINGLE)
    saved_config = {name: value for name, value in config.items() if name != "torch_dtype"}
    saved_config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(saved_config, indent=2) + "\n", encoding="utf-8")
