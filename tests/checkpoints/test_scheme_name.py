"""The scheme of a checkpoint in one or two words, from configurations as their writers make them."""

from __future__ import annotations

from typing import Any

import pytest

from hasten.checkpoints.quantized.scheme_name import scheme_name


def group(bits: object, kind: object = "int") -> dict[str, Any]:
    return {"targets": ["Linear"], "weights": {"num_bits": bits, "type": kind}}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"dtype": "bfloat16"}, "bf16"),
        ({"torch_dtype": "torch.float16"}, "fp16"),
        ({"torch_dtype": "float32", "quantization_config": None}, "fp32"),
        ({}, "-"),
        ({"dtype": ["bfloat16"]}, "-"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 3, "group_size": 128}, "dtype": "float16"}, "GPTQ int3"),
        ({"quantization_config": {"quant_method": "awq", "w_bit": 4}}, "AWQ int4"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "FP8"),
        (
            {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"a": group(8)}}},
            "compressed-tensors int8",
        ),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "config_groups": {"a": group(4), "b": group(8, "float")},
                }
            },
            "compressed-tensors int4 and fp8",
        ),
        (
            {"compression_config": {"quant_method": "compressed-tensors", "config_groups": {"a": group(8)}}},
            "compressed-tensors int8",
        ),
        ({"quantization_config": {"quant_method": "new"}}, "new"),
        ({"quantization_config": {"quant_method": "\x1b[31mred\nline"}}, "-"),
        ({"quantization_config": {"quant_method": "x" * 10_000}}, "-"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 10**1000}}, "GPTQ"),
        (
            {"compression_config": {"quant_method": "compressed-tensors", "config_groups": {"a": group(4)}}, "dtype": "bfloat16"},
            "compressed-tensors int4",
        ),
        ({"quantization_config": {"quant_method": "gptq", "bits": "4"}}, "GPTQ"),
        ({"quantization_config": {"quant_method": ["gptq"]}}, "-"),
        ({"quantization_config": "gptq"}, "-"),
        ({"quantization_config": {"quant_method": "compressed-tensors", "config_groups": [group(4)]}}, "compressed-tensors"),
        (
            {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"a": 4, "b": group([4])}}},
            "compressed-tensors",
        ),
        ({"quantization_config": {"quant_method": "x", "config_groups": {"a": {"weights": [1]}, "b": group(4, [1])}}}, "x int4"),
    ],
)
def test_names_of_schemes(config: dict[str, Any], name: str) -> None:
    assert scheme_name(config) == name
