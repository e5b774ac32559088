"""GGUF files of the tiny checkpoints, written with the ``gguf`` package: the reference for tests that read GGUF.

Names come from ``gguf.get_tensor_name_map``, and blocks from ``gguf.quants`` where it encodes a type. The K types are encoded here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

Array = npt.NDArray[Any]
BLOCK_TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gpt2": "gpt2"}
FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # of llama.cpp, for rows that 256 does not divide
_GPT2_MATRICES = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def write_gguf(
    path: Path,
    folder: Path,
    types: str | Mapping[str, str] = "Q8_0",
    *,
    edit: Callable[[GGUFWriter], None] | None = None,
    tensors_per_part: int = 0,
) -> dict[str, Tensor]:
    """Convert the checkpoint in ``folder`` to GGUF as llama.cpp's converter does.

    Returns what the file holds, dequantised to float32, under the names and in the layout of Hugging Face: it loads into the model.
    ``types`` is the type of all matrices, or maps patterns of Hugging Face names to types; the first that fits counts, and the
    others become F32. Rows that a block does not divide take llama.cpp's fallback, or F16. ``edit`` may add metadata, such as a
    tokenizer. A file of several parts has the names that the package gives them: ``path`` with "-00001-of-00003".
    """
    config = AutoConfig.from_pretrained(folder)
    architecture = ARCHITECTURES[config.model_type]
    writer = GGUFWriter(path, architecture, split_max_tensors=tensors_per_part)
    _add_settings(writer, config, architecture)
    number = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    stored: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        stored |= load_file(file)
    held = {}
    for name, tensor in stored.items():
        values = _to_gguf(name, tensor.float().numpy(), config, architecture)
        kind = choose_type(name, values.shape, types)
        raw = encode(values, kind)
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        writer.add_tensor(target, raw, raw_dtype=GGMLQuantizationType[kind])
        held[name] = torch.from_numpy(_from_gguf(name, decode(raw, kind), config, architecture)).contiguous()
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(rope, _head_dim(config)))
    if edit is not None:
        edit(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def choose_type(name: str, shape: tuple[int, ...], types: str | Mapping[str, str]) -> str:
    """Return the type of a tensor. Vectors are always F32."""
    if len(shape) < 2:
        return "F32"
    patterns = {"*": types} if isinstance(types, str) else types
    kind = next((kind for pattern, kind in patterns.items() if fnmatch(name, pattern)), "F32")
    for _ in range(2):
        if shape[-1] % gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0]:
            kind = FALLBACKS.get(kind, "F16")
    return kind


def encode(values: Array, kind: str) -> Array:
    """Return the bytes of a tensor, uint8 [..., bytes of a row]; F32 and F16 as numbers."""
    if kind in _ENCODERS:
        blocks = values.reshape(-1, 256).astype(np.float32)
        return _ENCODERS[kind](blocks).reshape(*values.shape[:-1], -1)
    raw: Array = quants.quantize(values, GGMLQuantizationType[kind])
    return raw


def decode(raw: Array, kind: str) -> Array:
    values: Array = quants.dequantize(raw, GGMLQuantizationType[kind])
    return values.astype(np.float32)


def llama3_factors(rope: Mapping[str, Any], head_dim: int) -> Array:
    """Return the divisors of the inverse frequencies as llama.cpp's converter computes them, float32 [D/2]."""
    frequencies = 1.0 / rope["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    original, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for frequency in frequencies:
        wavelength = 2 * math.pi / frequency
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(factors, dtype=torch.float32).numpy()


def _head_dim(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _add_settings(writer: GGUFWriter, config: PretrainedConfig, architecture: str) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    for key in ("bos", "eos", "pad"):
        token = getattr(config, f"{key}_token_id")
        if isinstance(token, int):
            getattr(writer, f"add_{key}_token_id")(token)
    if architecture == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(_head_dim(config))
    if config.model_type == "mistral" and config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _num_heads(name: str, config: PretrainedConfig, architecture: str) -> int:
    """Return the number of heads whose rows the converter interleaves; 0 for tensors that it leaves alone."""
    if architecture != "llama":
        return 0
    counts = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return next((count for part, count in counts.items() if f".{part}." in name), 0)


def _to_gguf(name: str, values: Array, config: PretrainedConfig, architecture: str) -> Array:
    if architecture == "gpt2" and name.endswith(_GPT2_MATRICES):
        values = values.T
    if heads := _num_heads(name, config, architecture):
        values = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    return np.ascontiguousarray(values)


def _from_gguf(name: str, values: Array, config: PretrainedConfig, architecture: str) -> Array:
    if heads := _num_heads(name, config, architecture):
        values = values.reshape(heads, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    return np.ascontiguousarray(values.T if architecture == "gpt2" and name.endswith(_GPT2_MATRICES) else values)


def _half_bytes(values: Array) -> Array:
    """Return [N] float16 as bytes [N, 2]."""
    return values.astype(np.float16)[:, None].view(np.uint8)


def _safe_ratio(values: Array, divisor: Array) -> Array:
    return np.divide(values, divisor, out=np.zeros_like(values), where=divisor != 0)


def _encode_4_5_k(blocks: Array, bits: int) -> Array:
    top = 2**bits - 1
    groups = blocks.reshape(-1, 8, 32)
    minima = np.maximum(-groups.min(axis=2), 0)
    scales = (groups.max(axis=2) + minima) / top
    d, dmin = (np.float16(np.maximum(values.max(axis=1), 1e-6) / 63).astype(np.float32) for values in (scales, minima))
    s = np.rint(scales / d[:, None]).clip(0, 63).astype(np.uint8)
    m = np.rint(minima / dmin[:, None]).clip(0, 63).astype(np.uint8)
    step = (d[:, None] * s)[:, :, None]
    codes = np.rint(_safe_ratio(groups + (dmin[:, None] * m)[:, :, None], np.broadcast_to(step, groups.shape)))
    q = codes.clip(0, top).astype(np.uint8)
    packed = np.concatenate(
        [s[:, :4] | (s[:, 4:] >> 4 << 6), m[:, :4] | (m[:, 4:] >> 4 << 6), (s[:, 4:] & 15) | (m[:, 4:] & 15) << 4], axis=1
    )
    pairs = (q & 15).reshape(-1, 4, 2, 32)
    low = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    fifth = np.bitwise_or.reduce([(q[:, j] >> 4) << j for j in range(8)])
    return np.concatenate([_half_bytes(d), _half_bytes(dmin), packed, *([fifth] if bits == 5 else []), low], axis=1)


def _encode_6_k(blocks: Array) -> Array:
    groups = blocks.reshape(-1, 16, 16)
    scales = np.abs(groups).max(axis=2) / 31
    d = np.float16(np.maximum(scales.max(axis=1), 1e-6) / 127).astype(np.float32)
    s = np.rint(scales / d[:, None]).clip(0, 127).astype(np.int8)
    step = np.broadcast_to((d[:, None] * s)[:, :, None], groups.shape)
    q = (np.rint(_safe_ratio(groups, step)).clip(-32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low = np.concatenate([q[:, :, 0] & 15 | (q[:, :, 2] & 15) << 4, q[:, :, 1] & 15 | (q[:, :, 3] & 15) << 4], axis=2)
    high = np.bitwise_or.reduce([(q[:, :, k] >> 4) << 2 * k for k in range(4)])
    return np.concatenate([low.reshape(-1, 128), high.reshape(-1, 64), s.view(np.uint8), _half_bytes(d)], axis=1)


_ENCODERS: dict[str, Callable[[Array], Array]] = {
    "Q4_K": lambda blocks: _encode_4_5_k(blocks, 4),
    "Q5_K": lambda blocks: _encode_4_5_k(blocks, 5),
    "Q6_K": _encode_6_k,
}
