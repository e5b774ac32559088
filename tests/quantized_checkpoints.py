"""Quantised twins of a float checkpoint, encoded in numpy from the description of each layout.

``encode_*`` quantise one matrix [O, I] by rounding to nearest. They return the stored tensors by the last part of the name, and the
weights that these mean, float32. ``write_*`` quantise the linear layers of a checkpoint and return these weights by name.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Encoded = tuple[dict[str, Tensor], Tensor]
Encoder = Callable[[str, Tensor], "Encoded | None"]  # of a weight by name; None: it stays as it is

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output in each 4-bit slot of a word


def write_gptq(
    folder: Path,
    source: Path,
    *,
    bits: int = 4,
    group_size: int = 32,
    symmetric: bool = True,
    desc_act: bool = False,
    version: int = 1,
    lm_head: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Tensor]:
    """Write a GPTQ checkpoint. ``settings`` replace values of its quantization_config."""

    def encode(name: str, weights: Tensor) -> Encoded | None:
        if not _is_linear(name, lm_head):
            return None
        groups = input_groups(weights.shape[1], group_size, seed=_seed(name) if desc_act else None)
        return encode_gptq(weights, bits=bits, groups=groups, symmetric=symmetric, version=version)

    config = {"quant_method": "gptq", "bits": bits, "group_size": group_size, "sym": symmetric, "desc_act": desc_act}
    config |= {"lm_head": lm_head, "checkpoint_format": "gptq" if version == 1 else "gptq_v2"}
    return write_quantized(folder, source, encode, {**config, **(settings or {})})


def write_awq(
    folder: Path, source: Path, *, group_size: int = 32, zero_point: bool = True, settings: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """Write an AWQ checkpoint in the GEMM layout."""

    def encode(name: str, weights: Tensor) -> Encoded | None:
        return encode_awq(weights, group_size=group_size, zero_point=zero_point) if _is_linear(name) else None

    config = {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": zero_point, "version": "gemm"}
    return write_quantized(folder, source, encode, {**config, "modules_to_not_convert": None, **(settings or {})})


def write_fp8(
    folder: Path,
    source: Path,
    *,
    block: tuple[int, int] | str = (32, 32),
    scale_dtype: torch.dtype = torch.float32,
    static: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Tensor]:
    """Write an FP8 checkpoint. ``block`` is a shape, "channel" or "tensor"."""

    def encode(name: str, weights: Tensor) -> Encoded | None:
        if not _is_linear(name):
            return None
        parts, meant = encode_fp8(weights, block=block, scale_dtype=scale_dtype)
        return parts | ({"input_scale": torch.tensor(0.5)} if static else {}), meant

    sizes = None if isinstance(block, str) else list(block)
    config = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "static" if static else "dynamic"}
    config |= {"weight_block_size": sizes, "modules_to_not_convert": ["lm_head"]}
    return write_quantized(folder, source, encode, {**config, **(settings or {})})


def write_quantized(folder: Path, source: Path, encode: Encoder, quantization: Mapping[str, Any]) -> dict[str, Tensor]:
    """Write the checkpoint ``source`` with its weights encoded, as one file."""
    stored: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for name, tensor in _load(source).items():
        encoded = encode(name, tensor.float()) if tensor.ndim == 2 else None
        if encoded is None:
            stored[name] = tensor
            continue
        stored |= {f"{name.removesuffix('weight')}{part}": value for part, value in encoded[0].items()}
        weights[name] = encoded[1]
    _write(folder, source, stored, {"quantization_config": dict(quantization)})
    return weights


def write_dequantized(folder: Path, source: Path, weights: Mapping[str, Tensor]) -> None:
    """Write the checkpoint ``source`` in float32, with ``weights`` in place of its own."""
    tensors = {name: weights.get(name, tensor).float() for name, tensor in _load(source).items()}
    _write(folder, source, tensors, {"dtype": "float32"})


def input_groups(num_inputs: int, group_size: int, seed: int | None = None) -> np.ndarray:
    """Return the group of each input: in order, or at random with ``seed``."""
    groups = np.arange(num_inputs) // (group_size if group_size > 0 else num_inputs)
    return groups if seed is None else np.random.default_rng(seed).permutation(groups)


def encode_gptq(weights: Tensor, *, bits: int, groups: np.ndarray, symmetric: bool, version: int) -> Encoded:
    """Return qweight, qzeros, scales and g_idx. A zero of 0 is stored as the largest code in version 1."""
    codes, scales, zeros = _quantize(weights.numpy(), bits, groups, symmetric)
    stored = zeros if version == 1 else zeros + 1
    parts = {
        "qweight": _tensor(_bit_stream(codes, bits).T),
        "qzeros": _tensor(_bit_stream((stored - 1) % (1 << bits), bits)),
        "scales": _tensor(scales.astype(np.float16)),
        "g_idx": _tensor(groups.astype(np.int32)),
    }
    return parts, _meaning(codes, scales, zeros, groups)


def encode_awq(weights: Tensor, *, group_size: int, zero_point: bool = True) -> Encoded:
    """Return qweight, scales and, with ``zero_point``, qzeros."""
    groups = input_groups(weights.shape[1], group_size)
    codes, scales, zeros = _quantize(weights.numpy(), 4, groups, symmetric=not zero_point)
    parts = {"qweight": _tensor(_awq_words(codes.T)), "scales": _tensor(scales.astype(np.float16))}
    return parts | ({"qzeros": _tensor(_awq_words(zeros))} if zero_point else {}), _meaning(codes, scales, zeros, groups)


def encode_fp8(weights: Tensor, *, block: tuple[int, int] | str, scale_dtype: torch.dtype = torch.float32) -> Encoded:
    """Return weight and weight_scale_inv. A ``scale_dtype`` of 8 bits stores exponents."""
    outputs, inputs = weights.shape
    height, width = {"tensor": (outputs, inputs), "channel": (1, inputs)}[block] if isinstance(block, str) else block
    rows, columns = np.arange(outputs)[:, None] // height, np.arange(inputs)[None] // width
    scales = np.zeros((-(-outputs // height), -(-inputs // width)), dtype=np.float32)
    np.maximum.at(scales, (rows, columns), np.abs(weights.numpy()))
    scales = np.maximum(scales, np.float32(1e-6)) / np.float32(448)
    if scale_dtype.itemsize == 1:
        exponents = np.ceil(np.log2(scales)).astype(np.int64)
        scales, bits = np.ldexp(np.float32(1), exponents), torch.from_numpy((exponents + 127).astype(np.uint8))
        stored = bits if scale_dtype == torch.uint8 else bits.view(scale_dtype)
    else:
        stored = torch.from_numpy(scales).to(scale_dtype)
        scales = stored.to(torch.float32).numpy()
    per_weight = scales[rows, columns]
    codes = (weights / torch.from_numpy(per_weight)).clamp(-448, 448).to(torch.float8_e4m3fn)
    meant = e4m3_values()[codes.view(torch.uint8).numpy()] * per_weight
    return {"weight": codes, "weight_scale_inv": stored.reshape(()) if block == "tensor" else stored}, _tensor(meant)


def e4m3_values() -> np.ndarray:
    """Return the number of each byte in FP8 e4m3: 4 bits of exponent, bias 7, no infinity."""
    byte = np.arange(256)
    exponent, fraction = (byte >> 3) & 15, (byte & 7) / 8
    magnitude = np.where(exponent > 0, np.ldexp(1 + fraction, exponent - 7), np.ldexp(fraction, -6))
    magnitude[(byte & 127) == 127] = np.nan
    return np.where(byte > 127, -magnitude, magnitude).astype(np.float32)


def _quantize(weights: np.ndarray, bits: int, groups: np.ndarray, symmetric: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return codes [O, I], float32 scales that float16 holds, and zeros, both [G, O]."""
    largest = (1 << bits) - 1
    codes = np.empty(weights.shape, dtype=np.int64)
    scales = np.empty((groups.max() + 1, len(weights)), dtype=np.float32)
    zeros = np.full(scales.shape, (largest + 1) // 2, dtype=np.int64)
    for group in range(len(scales)):
        columns = weights[:, groups == group]
        low, high = np.minimum(columns.min(1), 0), np.maximum(columns.max(1), 0)
        reach = 2 * np.maximum(-low, high) if symmetric else high - low
        scale = np.maximum(reach / largest, 1e-4).astype(np.float16).astype(np.float32)
        if not symmetric:
            zeros[group] = np.clip(np.rint(-low / scale), 0, largest)
        scales[group] = scale
        codes[:, groups == group] = np.clip(np.rint(columns / scale[:, None]) + zeros[group][:, None], 0, largest)
    return codes, scales, zeros


def _meaning(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, groups: np.ndarray) -> Tensor:
    return _tensor((codes - zeros.T[:, groups]).astype(np.float32) * scales.T[:, groups])


def _bit_stream(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return the codes of each row one after the other, lowest bit first, in 32-bit words."""
    stream = (codes[..., None] >> np.arange(bits)) & 1
    stream = stream.reshape(len(codes), -1).astype(np.uint8)
    stream = np.pad(stream, ((0, 0), (0, -stream.shape[1] % 32)))
    return np.packbits(stream, axis=1, bitorder="little").view("<i4")


def _awq_words(codes: np.ndarray) -> np.ndarray:
    words = np.zeros((len(codes), codes.shape[1] // 8), dtype=np.uint32)
    for slot, output in enumerate(AWQ_ORDER):
        words |= codes[:, output::8].astype(np.uint32) << np.uint32(4 * slot)
    return words.view(np.int32)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _is_linear(name: str, lm_head: bool = False) -> bool:
    return name.endswith("proj.weight") or (lm_head and name == "lm_head.weight")


def _seed(name: str) -> int:
    return zlib.crc32(name.encode())


def _load(source: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(source.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def _write(folder: Path, source: Path, tensors: Mapping[str, Tensor], changes: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if ".safetensors" not in file.name and file.name != "config.json":
            shutil.copyfile(file, folder / file.name)
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
