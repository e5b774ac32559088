"""Export of a checkpoint to OpenVINO by optimum-intel, for both OpenVINO workers."""

import shutil
from importlib.metadata import version
from typing import Any

from engines.workers.worker import Setup

GROUP = 128


def export(setup: Setup) -> None:
    import openvino
    import openvino_tokenizers
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
    from transformers import AutoTokenizer

    quantization = {
        "bf16": None,
        "int8": OVWeightQuantizationConfig(bits=8, sym=True),
        "int4": OVWeightQuantizationConfig(bits=4, sym=True, group_size=GROUP, ratio=1.0, all_layers=True),
    }[setup.weights]
    options: dict[str, Any] = {"quantization_config": quantization} if quantization else {"load_in_8bit": False}
    model = OVModelForCausalLM.from_pretrained(setup.checkpoint, export=True, compile=False, **options)
    model.save_pretrained(setup.converted)
    tokenizer = AutoTokenizer.from_pretrained(setup.checkpoint)
    parts = openvino_tokenizers.convert_tokenizer(tokenizer, with_detokenizer=True)
    for part, name in zip(parts, ("tokenizer", "detokenizer"), strict=True):
        openvino.save_model(part, setup.converted / f"openvino_{name}.xml")
    for file in setup.checkpoint.glob("token*.json"):
        shutil.copy(file, setup.converted)


def properties(setup: Setup) -> dict[str, Any]:
    result: dict[str, Any] = {"INFERENCE_NUM_THREADS": setup.threads, "PERFORMANCE_HINT": "LATENCY"}
    if setup.kv == "int8":
        result["KV_CACHE_PRECISION"] = "u8"
    return result


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("openvino", "openvino-genai", "optimum-intel", "nncf", "transformers", "torch")}
