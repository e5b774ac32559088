"""Writing a decoder as the checkpoint that its family reads: the weight map backwards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hasten.checkpoints.shards import SINGLE
from hasten.models.decoder import Decoder
from hasten.models.family import ModelFamily


def write_decoder(folder: Path, decoder: Decoder, family: ModelFamily, config: Mapping[str, Any], dtype: torch.dtype) -> None:
    """A folder that transformers and hasten load. All matrices are dense."""
    tensors: dict[str, Tensor] = {}
    for source in family.weights(decoder.spec):
        tensor = source.rows(decoder).detach()
        # A copy: rows of one parameter share its memory, which the file format does not take.
        tensors[source.name] = (tensor.T if source.transposed else tensor).to(dtype, copy=True).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    about = {name: value for name, value in config.items() if name != "torch_dtype"}
    about["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
