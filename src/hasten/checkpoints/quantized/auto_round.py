"""AutoRound: codes in the layout of GPTQ or of AWQ, with settings of its own.

``packing_format`` names the layout. ``extra_config`` gives modules other bits and groups, as ``dynamic`` does in GPTQModel; the
shapes of a module's tensors say which it has.

Paper: Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs", 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hasten.checkpoints.quantized.awq import read_awq
from hasten.checkpoints.quantized.gptq import read_gptq
from hasten.checkpoints.quantized.module_tensors import refuse_setting
from hasten.checkpoints.tensor_files import TensorFiles
from hasten.layers.formats.stored_matrix import StoredMatrix

GPTQ, AWQ = "auto_round:auto_gptq", "auto_round:auto_awq"
NOT_QUANTIZED = 16  # bits of a module that is left alone


def read_auto_round(settings: Mapping[str, Any], files: TensorFiles) -> dict[str, StoredMatrix]:
    """Return the matrices by the name of the weight. Raises like ``read_gptq`` and ``read_awq``."""
    packing = settings.get("packing_format", GPTQ)
    refuse_setting(files, "AutoRound", "packing_format", packing, (GPTQ, AWQ))
    if packing == AWQ:
        return read_awq({**settings, "version": "gemm", "zero_point": True}, files)
    overrides = settings.get("extra_config")
    if isinstance(overrides, Mapping):
        overrides = {name: values for name, values in overrides.items() if not _leaves_alone(values)}
    return read_gptq({**settings, "checkpoint_format": "gptq", "desc_act": False, "dynamic": overrides}, files)


def _leaves_alone(values: object) -> bool:
    return isinstance(values, Mapping) and values.get("bits") == NOT_QUANTIZED
