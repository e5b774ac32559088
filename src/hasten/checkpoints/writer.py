"""Writing a folder of weights and configuration. A crash leaves the files that were there before."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from hasten.checkpoints.shards import SINGLE


def write_checkpoint(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], *, indent: int = 1) -> None:
    """Write ``model.safetensors`` and ``config.json``; ``indent`` is that of the JSON file."""
    folder.mkdir(parents=True, exist_ok=True)
    weights, table = folder / f"{SINGLE}.partial", folder / "config.json.partial"
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, weights, metadata={"format": "pt"})
    table.write_text(json.dumps(config, indent=indent) + "\n", encoding="utf-8")
    os.replace(weights, folder / SINGLE)
    os.replace(table, folder / "config.json")
