"""``scheme_name``: how a checkpoint stores its weights, from its configuration alone.

It is for lists of models, so it reads no weight file. What it does not know it calls by its own name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
# As in ``QuantSpec.scheme``.
METHODS = {"gptq": "GPTQ", "awq": "AWQ", "auto-round": "AutoRound", "hqq": "HQQ", "fp8": "FP8", "fbgemm_fp8": "FP8"}
UNKNOWN = "-"


def quantization_settings(config: Mapping[str, Any]) -> Any:
    """Return the value that describes the quantisation; None, or what is empty, if there is none."""
    return config.get("quantization_config") or config.get("compression_config")  # the key of early compressed-tensors


def scheme_name(config: Mapping[str, Any]) -> str:
    """Return a name such as "bf16" or "GPTQ int4".

    "compressed-tensors int4 and fp8" has two schemes; "-" is no name.
    """
    settings = quantization_settings(config)
    if not settings:
        name = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
        return DTYPES.get(name, UNKNOWN)
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    if not isinstance(method, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", method):
        return UNKNOWN
    name, codes = METHODS.get(method, method), _codes(settings)
    return f"{name} {' and '.join(codes)}" if codes and name != "FP8" else name


def _codes(settings: Mapping[str, Any]) -> list[str]:
    """Return the kinds of codes, such as ["int4"]."""
    bits, groups = settings.get("bits", settings.get("w_bit")), settings.get("config_groups")
    if _is_width(bits):
        return [f"int{bits}"]
    weights = (
        [group.get("weights") for group in groups.values() if isinstance(group, Mapping)] if isinstance(groups, Mapping) else []
    )
    kinds = [
        f"{'fp' if weight.get('type') == 'float' else 'int'}{weight['num_bits']}"
        for weight in weights
        if isinstance(weight, Mapping) and _is_width(weight.get("num_bits"))
    ]
    return list(dict.fromkeys(kinds))


def _is_width(bits: object) -> bool:
    return type(bits) is int and 1 <= bits <= 64
