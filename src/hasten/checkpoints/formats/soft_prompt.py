"""Soft prompts on disk, in the format of the ``peft`` library.

Prompt tuning: Lester et al., 2021, arXiv 2104.08691.

::

    adapter_config.json        peft_type, task_type, num_virtual_tokens, token_dim, base_model_name_or_path
    adapter_model.safetensors  prompt_embeddings [N, E]

Shape suffixes: N virtual tokens · E hidden size.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.checkpoints.finite_weights import finite_weights
from hasten.checkpoints.json_values import is_integer, read_json
from hasten.checkpoints.reader import FLOAT_DTYPES
from hasten.checkpoints.regular_file import has_file
from hasten.checkpoints.shards import read_shards, refuse_pickles
from hasten.checkpoints.tensor_files import SafetensorsFiles
from hasten.checkpoints.write_tensors import write_tensors
from hasten.core.errors import CheckpointError, ModelNotFound, show
from hasten.layers.formats.base import check_finite

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TENSOR = "prompt_embeddings"
_CONVERT = (
    "Convert the file if you trust it: import torch, safetensors.torch as s; "
    f"s.save_file(torch.load('adapter_model.bin', weights_only=True), {WEIGHTS!r})"
)


@dataclass(frozen=True, slots=True)
class StoredSoftPrompt:
    """The embeddings of a soft prompt, and the model for which they were trained."""

    embeddings_NE: Tensor  # float32
    base_model: str | None  # its name or folder; None: not stored


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedFor:
    """The model of a soft prompt, as adapter_config.json describes it."""

    base_model: str
    num_layers: int
    num_attention_heads: int


def read_soft_prompt(folder: Path, hidden_size: int, max_tokens: int) -> StoredSoftPrompt:
    """Return the soft prompt of a folder, for a model of this hidden size.

    Raises ``ModelNotFound`` for a folder without an adapter. Raises ``CheckpointError`` for pickles, an adapter of another kind or
    of another hidden size, more than ``max_tokens`` virtual tokens, and weights that are missing, unexpected or not finite.
    """
    if not os.path.isdir(folder):
        raise ModelNotFound("there is no such folder of a soft prompt", got=str(folder), remedy="Check the path")
    if not os.path.lexists(folder / CONFIG):
        raise ModelNotFound(f"{folder} has no {CONFIG}, so it is not the folder of a soft prompt", remedy="Check the path")
    config = read_json(folder / CONFIG)
    num_tokens = _check_config(folder, config, hidden_size, max_tokens)
    refuse_pickles(folder, WEIGHTS, remedy=_CONVERT)
    if not has_file(folder / WEIGHTS):
        raise CheckpointError(
            f"{folder} has no weights of a soft prompt",
            got="no weight file",
            allowed=WEIGHTS,
            remedy="Download or train the soft prompt again",
        )
    files = SafetensorsFiles(folder, read_shards(folder, WEIGHTS))
    stored = [f"{name} {list(entry.shape)} {entry.dtype}" for name, entry in files.entries.items()]
    entry = files.entries.get(TENSOR)
    if len(stored) != 1 or entry is None or entry.shape != (num_tokens, hidden_size) or entry.dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            f"{WEIGHTS} of {folder} does not hold the soft prompt that {CONFIG} describes",
            got=", ".join(stored) or "no tensor",
            allowed=f"{TENSOR} [{num_tokens}, {hidden_size}] in {', '.join(FLOAT_DTYPES)}",
            remedy="Download or train the soft prompt again",
        )
    embeddings_NE = files.read(TENSOR).to(torch.float32, copy=True)
    with finite_weights(TENSOR, folder):
        check_finite(embeddings_NE)
    base_model = config.get("base_model_name_or_path")
    return StoredSoftPrompt(embeddings_NE, base_model if isinstance(base_model, str) and base_model else None)


def write_soft_prompt(folder: Path, embeddings_NE: Tensor, trained_for: TrainedFor) -> None:
    """Write a soft prompt for ``peft`` and for ``read_soft_prompt``.

    A crash leaves the files that were there before.
    """
    num_tokens, hidden_size = embeddings_NE.shape
    config: dict[str, Any] = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": trained_for.base_model,
        "inference_mode": True,
        "num_virtual_tokens": num_tokens,
        "token_dim": hidden_size,
        "num_layers": trained_for.num_layers,
        "num_attention_heads": trained_for.num_attention_heads,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }
    folder.mkdir(parents=True, exist_ok=True)
    weights, table = folder / f"{WEIGHTS}.partial", folder / f"{CONFIG}.partial"
    write_tensors({TENSOR: embeddings_NE.detach().to(torch.float32).contiguous()}, weights)
    table.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    os.replace(weights, folder / WEIGHTS)
    os.replace(table, folder / CONFIG)


def _check_config(folder: Path, config: dict[str, Any], hidden_size: int, max_tokens: int) -> int:
    """Return the number of virtual tokens.

    Raises ``CheckpointError`` unless it is a soft prompt for such a model.
    """
    kind, task = config.get("peft_type"), config.get("task_type")
    if kind != "PROMPT_TUNING" or task not in (None, "CAUSAL_LM") or config.get("num_transformer_submodules") not in (None, 1):
        raise CheckpointError(
            f"the adapter in {folder} is not a soft prompt of a causal language model",
            got=f"peft_type={show(kind)}, task_type={show(task)}, "
            f"num_transformer_submodules={show(config.get('num_transformer_submodules'))}",
            allowed="peft_type='PROMPT_TUNING', task_type='CAUSAL_LM', num_transformer_submodules=1",
            remedy="Train one with peft.PromptTuningConfig; other adapters are not supported",
        )
    num_tokens, size = config.get("num_virtual_tokens"), config.get("token_dim")
    if not is_integer(num_tokens) or not is_integer(size):
        raise CheckpointError(
            f"{CONFIG} of {folder} does not describe a soft prompt",
            got=f"num_virtual_tokens={show(num_tokens)}, token_dim={show(size)}",
            allowed="whole numbers from 1",
            remedy=f"Correct {CONFIG}, or download the soft prompt again",
        )
    if size != hidden_size:
        raise CheckpointError(
            f"the soft prompt in {folder} is for a model of another hidden size",
            got=f"{size:,}",
            allowed=f"{hidden_size:,}, the model's",
            remedy="Use a soft prompt that was trained for this model",
        )
    if num_tokens > max_tokens:
        raise CheckpointError(
            f"the soft prompt in {folder} leaves no room for a prompt and an answer in the context",
            got=f"{num_tokens:,} virtual tokens",
            allowed=f"up to {max_tokens:,}",
            remedy="Raise max_model_len, or train a shorter soft prompt",
        )
    return num_tokens
