"""``find_matrices``: the quantised matrices of a checkpoint.

The ``quantization_config`` in its ``config.json`` names the scheme.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from hasten.checkpoints.json_values import read_json
from hasten.checkpoints.quantized.auto_round import read_auto_round
from hasten.checkpoints.quantized.awq import read_awq
from hasten.checkpoints.quantized.compressed_tensors import read_compressed_tensors
from hasten.checkpoints.quantized.fp8 import read_fp8
from hasten.checkpoints.quantized.gptq import read_gptq
from hasten.checkpoints.quantized.scheme_name import quantization_settings
from hasten.checkpoints.tensor_files import TensorFiles
from hasten.core.errors import CheckpointError, UnsupportedModel, nearest, show
from hasten.layers.formats.stored_matrix import StoredMatrix

# By ``quant_method``: what finds the matrices of a scheme among the tensors.
SchemeReader = Callable[[Mapping[str, Any], TensorFiles], dict[str, StoredMatrix]]
SCHEMES: dict[str, SchemeReader] = {
    "gptq": read_gptq,
    "awq": read_awq,
    "auto-round": read_auto_round,
    "compressed-tensors": read_compressed_tensors,
    "fp8": read_fp8,
}
# Files beside config.json that AutoGPTQ and AutoAWQ once wrote -> the scheme if they name none.
SEPARATE_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
MODELOPT_FILE = "hf_quant_config.json"  # which NVIDIA's ModelOpt once wrote instead of a quantization_config
# Of attention modules; "output_scale" is the older name, in k_proj and v_proj.
KV_CACHE_PARTS = frozenset(
    f"{states}_{number}" for states in ("q", "k", "v", "kv", "output") for number in ("scale", "zero_point", "global_scale")
)


def find_matrices(config: Mapping[str, Any], files: TensorFiles) -> dict[str, StoredMatrix]:
    """Return the quantised matrices by the name of the weight.

    Empty for a checkpoint that is not quantised.
    Raises ``UnsupportedModel`` for an unknown scheme, and ``CheckpointError`` for tensors that are not those of the scheme.
    """
    settings = quantization_settings(config) or _read_separate(files)
    if not settings:
        return {}
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    if not isinstance(method, str) or method not in SCHEMES:
        raise UnsupportedModel(
            f"hasten does not read the quantisation of {files.folder}",
            got=show(method if isinstance(settings, Mapping) else settings),
            allowed=", ".join(SCHEMES),
            remedy=nearest(method, list(SCHEMES)) if isinstance(method, str) else "Use a checkpoint of one of these schemes",
        )
    return SCHEMES[method](settings, files)


def _read_separate(files: TensorFiles) -> dict[str, Any]:
    """Return the settings of quantised weights that config.json does not describe.

    Empty for a checkpoint without such weights.
    """
    if os.path.lexists(files.folder / MODELOPT_FILE) and any(name.endswith(".weight_scale") for name in files.entries):
        return {"quant_method": "modelopt"}  # which is refused by name
    packed = next((name for name in files.entries if name.endswith(".qweight")), None)
    if packed is None:
        return {}
    for name, method in SEPARATE_FILES.items():
        if os.path.lexists(files.folder / name):
            return {"quant_method": method, **read_json(files.folder / name)}
    raise CheckpointError(
        f"{files.folder} holds packed codes such as {packed}, and config.json has no quantization_config that describes them",
        remedy="Download the checkpoint again: its configuration is not complete",
    )


def kv_cache_scales(config: Mapping[str, Any], files: TensorFiles) -> set[str]:
    """Return the names of the tensors that calibrate a quantised KV cache, which hasten does not read.

    hasten stores the KV cache in the type that its user chose, whatever the checkpoint was calibrated for.
    """
    return {name for name in files.entries if name.rpartition(".")[2] in KV_CACHE_PARTS} if quantization_settings(config) else set()
