"""Converting a transformers checkpoint (Qwen3 or Llama, one file) to GGUF without a vocabulary.

The lm_head is quantised as well, so that a file has no more bytes per weight than its type says.
"""

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

KINDS = {"bf16": Kind.BF16, "int8": Kind.Q8_0, "int4": Kind.Q4_0}
FILE_TYPES = {
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "int8": gguf.LlamaFileType.MOSTLY_Q8_0,
    "int4": gguf.LlamaFileType.MOSTLY_Q4_0,
}
ARCHITECTURES = {"qwen3": gguf.MODEL_ARCH.QWEN3, "llama": gguf.MODEL_ARCH.LLAMA}


def tensors(file: Path) -> dict[str, Any]:
    """Return float32 arrays by name; the file has bf16."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        data_start = stream.tell()
    header.pop("__metadata__", None)
    data = np.memmap(file, np.uint8, "r", offset=data_start)
    arrays = {}
    for name, entry in header.items():
        assert entry["dtype"] == "BF16", f"{name} is {entry['dtype']}"
        start, stop = entry["data_offsets"]
        bits = data[start:stop].view(np.uint16).astype(np.uint32) << 16
        arrays[name] = bits.view(np.float32).reshape(entry["shape"])
    return arrays


def interleaved(weight: Any, heads: int) -> Any:
    """Return the rows of each head reordered from halves to pairs, because llama.cpp rotates neighbours."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def llama3_factors(rope: dict[str, Any], head_dim: int) -> Any:
    """Return the divisor of each rotary frequency."""
    frequencies = rope["rope_theta"] ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    wavelengths = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((wavelengths - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)


def describe(writer: gguf.GGUFWriter, config: dict[str, Any], weights: str) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(FILE_TYPES[weights])
    writer.add_tokenizer_model("no_vocab")


def write(checkpoint: Path, file: Path, weights: str) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    architecture = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[architecture])
    describe(writer, config, weights)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    rope, heads = config["rope_parameters"], {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(rope, config["head_dim"]))
    for name, value in tensors(checkpoint / "model.safetensors").items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        target = names.get_name(name, try_suffixes=(".weight",))
        assert target is not None, f"no GGUF name for {name}"
        if value.ndim == 1:
            writer.add_tensor(target, value)
            continue
        projection = name.removesuffix("_proj.weight")[-1]
        if config["model_type"] == "llama" and "self_attn" in name and projection in heads:
            value = interleaved(value, heads[projection])
        writer.add_tensor(target, gguf.quants.quantize(value, KINDS[weights]), raw_dtype=KINDS[weights])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
