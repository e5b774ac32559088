"""Quantised checkpoints of the formats that people publish, rounded to nearest from a bf16 checkpoint.

``write_gptq`` writes GPTQ v1 (symmetric int4, groups of 128) and ``write_fp8`` FP8 e4m3 (blocks of 128 x 128). Embedding and norms
stay bf16, and so does the lm_head unless ``lm_head`` is true; a tied one is then stored beside the embedding.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

GROUP, BLOCK = 128, 128
CHUNK_ROWS = 8192  # a multiple of BLOCK, so that no float32 copy of a large lm_head exists
ZERO = 8  # the int4 code of weight 0
FP8_MAX = 448.0
SMALLEST_SCALE = 2.0**-14  # of groups of zeros, and the smallest normal float16

Tensors = dict[str, Tensor]


def write_gptq(checkpoint: Path, folder: Path, *, lm_head: bool) -> None:
    settings = {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": 4,
        "group_size": GROUP,
        "sym": True,
        "desc_act": False,
        "lm_head": lm_head,
    }
    _write(checkpoint, folder, settings, gptq_tensors, lm_head=lm_head)


def write_fp8(checkpoint: Path, folder: Path, *, lm_head: bool) -> None:
    settings = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": [] if lm_head else ["lm_head"],
    }
    _write(checkpoint, folder, settings, fp8_tensors, lm_head=lm_head)


def gptq_tensors(weight_OI: Tensor) -> Tensors:
    """Return codes, zeros, scales and groups of one matrix, whose inputs are a multiple of the group size."""
    rows, columns = weight_OI.shape
    codes, scales = zip(*(_int4_rows(chunk) for chunk in weight_OI.split(CHUNK_ROWS)), strict=True)
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    zeros = (torch.full((8,), ZERO - 1, dtype=torch.int32) << shifts).sum(dtype=torch.int32)  # v1 stores one less
    return {
        "qweight": torch.cat(codes, 1),
        "qzeros": zeros.expand(columns // GROUP, rows // 8).contiguous(),
        "scales": torch.cat(scales, 1),
        "g_idx": torch.arange(columns, dtype=torch.int32) // GROUP,
    }


def _int4_rows(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes of some outputs, eight inputs in an int32 [I / 8, O], and their scales, float16 [G, O]."""
    groups_OGI = weight_OI.float().unflatten(1, (-1, GROUP))
    scales_OG = (groups_OGI.abs().amax(2) / 7.5).clamp_min(SMALLEST_SCALE).half()
    codes = (groups_OGI / scales_OG.float()[..., None]).round_().add_(ZERO).clamp_(0, 15).to(torch.int32)
    by_word = codes.flatten(1).T.unflatten(0, (-1, 8))  # [I / 8, 8, O]
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)[:, None]
    return (by_word << shifts).sum(1, dtype=torch.int32), scales_OG.T.contiguous()


def fp8_tensors(weight_OI: Tensor) -> Tensors:
    """Return the values and the scales of one matrix; blocks at its edges may be smaller."""
    values, scales = zip(*(_fp8_rows(chunk) for chunk in weight_OI.split(CHUNK_ROWS)), strict=True)
    return {"weight": torch.cat(values), "weight_scale_inv": torch.cat(scales)}


def _fp8_rows(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = weight_OI.shape
    padded = torch.nn.functional.pad(weight_OI.float(), (0, -columns % BLOCK, 0, -rows % BLOCK))
    blocks = padded.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))  # [block, row, block, column]
    scales = (blocks.abs().amax((1, 3)) / FP8_MAX).clamp_min(SMALLEST_SCALE)
    values = (blocks / scales[:, None, :, None]).flatten(2).flatten(0, 1)
    return values[:rows, :columns].to(torch.float8_e4m3fn), scales


def _write(
    checkpoint: Path, folder: Path, settings: dict[str, Any], convert: Callable[[Tensor], Tensors], *, lm_head: bool
) -> None:
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    tensors: Tensors = {}
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118
            weight = file.get_tensor(name)
            is_head = name == "lm_head.weight"
            if weight.ndim == 2 and "embed" not in name and (lm_head or not is_head):
                tensors |= _named(name, convert(weight))
            elif not is_head or not config["tie_word_embeddings"]:
                tensors[name] = weight
        if lm_head and config["tie_word_embeddings"]:
            tensors |= _named("lm_head.weight", convert(file.get_tensor("model.embed_tokens.weight")))
    config |= {"quantization_config": settings}
    if lm_head:
        config["tie_word_embeddings"] = False
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for file_name in checkpoint.glob("*token*.json"):
        shutil.copy(file_name, folder)


def _named(weight: str, parts: Tensors) -> Tensors:
    return {f"{weight.removesuffix('.weight')}.{part}": tensor for part, tensor in parts.items()}
