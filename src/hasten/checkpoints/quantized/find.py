"""``find_matrices``: the quantised matrices of a checkpoint.

The ``quantization_config`` in its ``config.json`` names the scheme.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hasten.checkpoints.quantized.compressed_tensors import read_compressed_tensors
from hasten.checkpoints.tensor_files import TensorFiles
from hasten.core.errors import UnsupportedModel, nearest, show
from hasten.layers.formats.stored_matrix import StoredMatrix

# By ``quant_method``: what finds the matrices of a scheme among the tensors.
SchemeReader = Callable[[Mapping[str, Any], TensorFiles], dict[str, StoredMatrix]]
SCHEMES: dict[str, SchemeReader] = {"compressed-tensors": read_compressed_tensors}
# Of attention modules; "output_scale" is the older name, in k_proj and v_proj.
KV_CACHE_PARTS = frozenset(
    f"{states}_{number}" for states in ("q", "k", "v", "kv", "output") for number in ("scale", "zero_point", "global_scale")
)


def find_matrices(config: Mapping[str, Any], files: TensorFiles) -> dict[str, StoredMatrix]:
    """Return the quantised matrices by the name of the weight.

    Empty for a checkpoint that is not quantised.
    Raises ``UnsupportedModel`` for an unknown scheme, and ``CheckpointError`` for tensors that are not those of the scheme.
    """
    settings = _settings(config)
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


def kv_cache_scales(config: Mapping[str, Any], files: TensorFiles) -> set[str]:
    """Return the names of the tensors that calibrate a quantised KV cache, which hasten does not read.

    hasten stores the KV cache in the type that its user chose, whatever the checkpoint was calibrated for.
    """
    return {name for name in files.entries if name.rpartition(".")[2] in KV_CACHE_PARTS} if _settings(config) else set()


def _settings(config: Mapping[str, Any]) -> Any:
    return config.get("quantization_config") or config.get("compression_config")  # the key of early compressed-tensors
