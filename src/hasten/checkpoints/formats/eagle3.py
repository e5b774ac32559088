"""EAGLE-3 heads on disk (Li et al., 2025, arXiv 2503.01840): the layout of the ``speculators`` project, which vLLM serves.

::

    fc.weight [E, 3·E_target]           layers.0.input_layernorm, hidden_norm, post_attention_layernorm .weight [E]
    norm.weight [E]                     layers.0.self_attn.{q,k,v}_proj.weight [·, 2E], o_proj.weight [E, ·]
    lm_head.weight [D, E]               layers.0.mlp.{gate,up,down}_proj.weight
    d2t i64 [D]  an offset: draft token d is the target's token d + d2t[d]          t2d bool [V]  whether a token can be guessed
    embed_tokens.weight [V, E]          only where it is not the target's

Read besides, once stored as safetensors: the paper's own names (``midlayer.*``) and names that begin with ``model.``. Nothing of
the folder is run, whatever its configuration asks for. Shapes are checked by who knows the target.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from hasten.checkpoints.formats.eagle3_config import Eagle3Config, read_config
from hasten.checkpoints.header import TensorEntry
from hasten.checkpoints.reader import Checkpoint, read_table
from hasten.checkpoints.shards import INDEX, SINGLE, only_pickles, read_shards
from hasten.core.errors import CheckpointError, ModelNotFound

# Copies of the target's weights that only training needs, and what is worked out from the configuration.
IGNORED = re.compile(r"verifier_(norm|lm_head)\.weight|.*rotary_emb\.inv_freq")


def open_eagle3(folder: Path) -> tuple[Checkpoint, Eagle3Config]:
    """The head's checkpoint, its tensors under the names above, and its configuration.

    Raises ``ModelNotFound`` for a folder that holds none, and ``CheckpointError`` for one that is broken, has only pickled weights,
    holds one tensor under two names, or is configured as something else than an EAGLE-3 head of one layer.
    """
    if not (folder / "config.json").is_file():
        raise ModelNotFound(f"{folder} has no config.json, so it is not the folder of an EAGLE-3 head", remedy="Check the path")
    values = read_table(folder / "config.json")
    config = read_config(folder, values)
    _refuse_pickles(folder)
    return Checkpoint(folder, values, {}, _canonical(folder, read_shards(folder))), config


def write_eagle3(folder: Path, config: Eagle3Config, tensors: Mapping[str, Tensor], target_ids_D: Tensor, vocab_size: int) -> None:
    """Writes a head; a crash leaves the files that were there.

    ``tensors`` are all but ``d2t`` and ``t2d``, which are added where the draft vocabulary is not the whole one.
    """
    kept = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    if not torch.equal(target_ids_D, torch.arange(vocab_size)):
        kept["d2t"] = target_ids_D - torch.arange(len(target_ids_D))
        kept["t2d"] = torch.zeros(vocab_size, dtype=torch.bool).index_fill(0, target_ids_D, True)
    folder.mkdir(parents=True, exist_ok=True)
    weights, table = folder / f"{SINGLE}.partial", folder / "config.json.partial"
    save_file(kept, weights, metadata={"format": "pt"})
    table.write_text(json.dumps(config.as_json(), indent=2) + "\n", encoding="utf-8")
    os.replace(weights, folder / SINGLE)
    os.replace(table, folder / "config.json")


def read_target_ids(checkpoint: Checkpoint, draft_vocab_size: int, vocab_size: int) -> Tensor:
    """The target's id of each draft token. [D], int64

    Raises ``CheckpointError`` if ``d2t`` and ``t2d`` do not map ``draft_vocab_size`` tokens into a vocabulary of ``vocab_size``.
    """
    d2t, t2d = (checkpoint.read(name) if name in checkpoint.tensors else None for name in ("d2t", "t2d"))
    fault = None
    if d2t is not None and d2t.shape != (draft_vocab_size,):
        fault = f"d2t {list(d2t.shape)}, expected [{draft_vocab_size}]"
    elif t2d is not None and t2d.shape != (vocab_size,):
        fault = f"t2d {list(t2d.shape)}, expected [{vocab_size}], the target's vocabulary"
    if fault is not None:
        raise _unmapped(checkpoint, fault)
    if d2t is not None:
        ids_D = torch.arange(draft_vocab_size) + d2t.long()
    else:
        ids_D = torch.arange(vocab_size) if t2d is None else t2d.nonzero()[:, 0]
    num_different = len(torch.unique(ids_D))
    if num_different != draft_vocab_size:
        fault = f"{num_different:,} different tokens, expected {draft_vocab_size:,}"
    elif int(ids_D.min()) < 0 or int(ids_D.max()) >= vocab_size:
        fault = f"ids from {int(ids_D.min())} to {int(ids_D.max())}, allowed from 0 to {vocab_size - 1}"
    elif t2d is not None and not torch.equal(t2d.nonzero()[:, 0], ids_D.sort().values):
        fault = "other tokens by d2t than by t2d"
    if fault is not None:
        raise _unmapped(checkpoint, fault)
    return ids_D


def _canonical(folder: Path, stored: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """The entries under the names of this file's head."""
    tensors: dict[str, TensorEntry] = {}
    for name, entry in stored.items():
        plain = re.sub(r"^midlayer\.", "layers.0.", name.removeprefix("model."))
        if IGNORED.fullmatch(plain):
            continue
        if plain in tensors:
            raise CheckpointError(f"{folder} holds {plain} twice", got=f"{tensors[plain].name} and {name}", remedy="Remove one")
        tensors[plain] = entry
    return tensors


def _refuse_pickles(folder: Path) -> None:
    pickles = only_pickles(folder, SINGLE, INDEX)
    if pickles:
        raise CheckpointError(
            f"the head in {folder} is a pickle, which can run code when it is read, so hasten never does",
            got=", ".join(pickles),
            allowed=SINGLE,
            remedy="Convert it with PyTorch: safetensors.torch.save_file(torch.load(file, weights_only=True), 'model.safetensors')",
        )


def _unmapped(checkpoint: Checkpoint, got: str) -> CheckpointError:
    return CheckpointError(
        f"the draft vocabulary of {checkpoint.folder} does not map into the target's", got=got, remedy="Use a head of this target"
    )
