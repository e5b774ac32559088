"""EAGLE-3 heads on disk, in the layout of the ``speculators`` project, which vLLM serves.

Li et al., 2025, arXiv 2503.01840.

::

    fc.weight [E, 3·E_target]           layers.0.input_layernorm, hidden_norm, post_attention_layernorm .weight [E]
    norm.weight [E]                     layers.0.self_attn.{q,k,v}_proj.weight [·, 2E], o_proj.weight [E, ·]
    lm_head.weight [D, E]               layers.0.mlp.{gate,up,down}_proj.weight
    d2t i64 [D]  offset: draft token d is the target's token d + d2t[d]     t2d bool [V]  whether a token is in the draft vocabulary
    embed_tokens.weight [V, E]          only if it differs from the target's

The paper's own layout is read too: names begin with ``midlayer.``, and config.json is the layer's configuration with more keys.
A prefix ``model.`` is ignored. Code in the folder never runs, whatever config.json requests. ``hasten.models.eagle`` checks the
shapes, because it knows the target.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.checkpoints.json_values import are_integers, are_shares, are_strings, is_integer, read_json
from hasten.checkpoints.reader import Checkpoint
from hasten.checkpoints.shards import INDEX, SINGLE, TensorEntry, read_shards, refuse_pickles, write_checkpoint
from hasten.checkpoints.tensor_files import SafetensorsFiles
from hasten.core.errors import CheckpointError, ModelNotFound

# Copies of the target's weights that only training needs, and tensors that follow from the configuration.
IGNORED = re.compile(r"verifier_(norm|lm_head)\.weight|.*rotary_emb\.inv_freq")
# Options of some heads that change the computation and that hasten does not implement.
UNSUPPORTED = ("norm_before_fc", "norm_output", "fc_norm", "parallel_drafting")


@dataclass(frozen=True, slots=True, kw_only=True)
class Eagle3Config:
    """The configuration of an EAGLE-3 head of one layer."""

    layer: Mapping[str, Any]  # configuration of the layer, in the form of a model's config.json
    draft_vocab_size: int
    aux_layers: tuple[int, ...] | None = None  # the target's hidden states after these layers; None: the paper's choice
    target_size: int | None = None  # hidden size of the target; None: the head's own
    norm_before_residual: bool = False
    num_speculative_tokens: int = 5  # draft tokens in sequence that the head was trained for
    verifier: str | None = None  # name or path of the target
    architectures: tuple[str, ...] = ()  # of the target
    accuracies: tuple[tuple[float, ...], ...] = ()  # [position][rank of a choice]: share of held-out text where it was right

    def as_json(self) -> dict[str, Any]:
        """Return the content of ``config.json``. Only ``head_accuracies`` is not defined by speculators."""
        return {
            "architectures": ["Eagle3DraftModel"],
            "speculators_model_type": "eagle3",
            "transformer_layer_config": dict(self.layer),
            "draft_vocab_size": self.draft_vocab_size,
            "target_hidden_size": self.target_size,
            "norm_before_residual": self.norm_before_residual,
            "eagle_aux_hidden_state_layer_ids": None if self.aux_layers is None else list(self.aux_layers),
            "speculators_config": {
                "algorithm": "eagle3",
                "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": self.num_speculative_tokens}],
                "default_proposal_method": "greedy",
                "verifier": {"name_or_path": self.verifier, "architectures": list(self.architectures)},
            },
            "head_accuracies": [list(ranks) for ranks in self.accuracies],
            "tie_word_embeddings": False,
        }


def open_eagle3(folder: Path) -> tuple[Checkpoint, Eagle3Config]:
    """Return the checkpoint of a head, with its tensors under the names above, and its configuration.

    Raises ``ModelNotFound`` for a folder without a head. Raises ``CheckpointError`` for a broken head, pickled weights, a tensor
    under two names, or a configuration that is not of an EAGLE-3 head with one layer.
    """
    if not os.path.isfile(folder / "config.json"):
        raise ModelNotFound(f"{folder} has no config.json, so it is not the folder of an EAGLE-3 head", remedy="Check the path")
    values = read_json(folder / "config.json")
    config = _read_config(folder, values)
    remedy = "Convert it with PyTorch: safetensors.torch.save_file(torch.load(file, weights_only=True), 'model.safetensors')"
    refuse_pickles(folder, SINGLE, INDEX, remedy=remedy)
    files = SafetensorsFiles(folder, _canonical_names(folder, read_shards(folder)))
    return Checkpoint(folder, values, {}, files, files.entries), config


def write_eagle3(folder: Path, config: Eagle3Config, tensors: Mapping[str, Tensor], target_ids_D: Tensor, vocab_size: int) -> None:
    """Write a head. A crash leaves the files that were there before.

    ``tensors`` lacks ``d2t`` and ``t2d``, which are added for a draft vocabulary smaller than the target's.
    """
    stored = dict(tensors)
    if not torch.equal(target_ids_D, torch.arange(vocab_size, dtype=torch.int64, device="cpu")):
        stored["d2t"] = target_ids_D - torch.arange(len(target_ids_D), dtype=torch.int64, device="cpu")
        stored["t2d"] = torch.zeros(vocab_size, dtype=torch.bool, device="cpu").index_fill(0, target_ids_D, True)
    write_checkpoint(folder, stored, config.as_json(), indent=2)


def read_target_ids(checkpoint: Checkpoint, draft_vocab_size: int, vocab_size: int) -> Tensor:
    """Return the target's id of each draft token, [D] int64.

    Raises ``CheckpointError`` if ``d2t`` and ``t2d`` do not map ``draft_vocab_size`` tokens into a vocabulary of ``vocab_size``.
    """
    mapping = {"d2t": (draft_vocab_size, ("I64", "I32")), "t2d": (vocab_size, ("BOOL", "U8", "I64", "I32"))}
    for name, (size, dtypes) in mapping.items():
        stored = checkpoint.tensors.get(name)
        if stored is not None and stored.shape != (size,):
            raise _mapping_error(checkpoint, f"{name} {list(stored.shape)}, expected [{size}]")
        if stored is not None and stored.dtype not in dtypes:
            raise _mapping_error(checkpoint, f"{name} {stored.dtype}, expected {dtypes[0]}")
    d2t, t2d = (checkpoint.read(name) if name in checkpoint.tensors else None for name in mapping)
    if d2t is not None:
        ids_D = torch.arange(draft_vocab_size, dtype=torch.int64, device="cpu") + d2t.long()
    else:
        ids_D = torch.arange(vocab_size, dtype=torch.int64, device="cpu") if t2d is None else t2d.nonzero()[:, 0]
    num_distinct = len(torch.unique(ids_D))
    if num_distinct != draft_vocab_size:
        raise _mapping_error(checkpoint, f"{num_distinct:,} different tokens, expected {draft_vocab_size:,}")
    low, high = int(ids_D.min()), int(ids_D.max())
    if low < 0 or high >= vocab_size:
        raise _mapping_error(checkpoint, f"ids from {low} to {high}, allowed from 0 to {vocab_size - 1}")
    if t2d is not None and not torch.equal(t2d.nonzero()[:, 0], ids_D.sort().values):
        raise _mapping_error(checkpoint, "other tokens by d2t than by t2d")
    return ids_D


def _read_config(folder: Path, values: Mapping[str, Any]) -> Eagle3Config:
    """Return the configuration.

    Raises ``CheckpointError`` with every value that no EAGLE-3 head of one layer has.
    """
    layer, eagle = values.get("transformer_layer_config") or values, _table(values.get("eagle_config"))
    speculators, accuracies = _table(values.get("speculators_config")), values.get("head_accuracies") or []
    verifier = _table(speculators.get("verifier"))
    verifier_name, architectures = verifier.get("name_or_path"), verifier.get("architectures") or []
    model_type, num_layers = values.get("speculators_model_type", "eagle3"), _table(layer).get("num_hidden_layers", 1)
    draft_vocab_size = values.get("draft_vocab_size") or _table(layer).get("vocab_size")
    aux_layers = values.get("eagle_aux_hidden_state_layer_ids") or eagle.get("eagle_aux_hidden_state_layer_ids")
    target_size, norm_before_residual = values.get("target_hidden_size"), values.get("norm_before_residual", False)
    use_aux = eagle.get("use_aux_hidden_state", True)
    checks = [
        ("speculators_model_type", model_type, model_type == "eagle3", "'eagle3'"),
        ("transformer_layer_config", layer, isinstance(layer, Mapping), "a table"),
        ("num_hidden_layers", num_layers, num_layers == 1, "1: the head is one layer"),
        ("draft_vocab_size", draft_vocab_size, is_integer(draft_vocab_size), "a whole number from 1"),
        (
            "eagle_aux_hidden_state_layer_ids",
            aux_layers,
            aux_layers is None or (are_integers(aux_layers) and len(aux_layers) > 0),
            "whole numbers from 1",
        ),
        ("target_hidden_size", target_size, target_size is None or is_integer(target_size), "a whole number from 1"),
        ("norm_before_residual", norm_before_residual, isinstance(norm_before_residual, bool), "true or false"),
        (
            "head_accuracies",
            accuracies,
            isinstance(accuracies, list) and all(are_shares(ranks) for ranks in accuracies),
            "a list of rates from 0 to 1 per draft position",
        ),
        ("verifier.name_or_path", verifier_name, verifier_name is None or isinstance(verifier_name, str), "a name or path"),
        ("verifier.architectures", architectures, are_strings(architectures), "a list of names"),
        ("eagle_config.use_aux_hidden_state", use_aux, use_aux is True, "true"),
        *((name, values.get(name), not values.get(name), "off") for name in UNSUPPORTED),
    ]
    faults = [f"{name}={value!r} (allowed: {allowed})" for name, value, valid, allowed in checks if not valid]
    if faults:
        raise CheckpointError(
            f"the configuration in {folder} is not that of an EAGLE-3 head that hasten implements: {'; '.join(faults)}",
            remedy="Use another head, or correct config.json if it is wrong",
        )
    assert is_integer(draft_vocab_size)
    methods = speculators.get("proposal_methods")
    num_tokens = _table(methods[0]).get("speculative_tokens") if isinstance(methods, list) and methods else None
    return Eagle3Config(
        layer=layer,
        draft_vocab_size=draft_vocab_size,
        aux_layers=None if aux_layers is None else tuple(aux_layers),
        target_size=target_size,
        norm_before_residual=norm_before_residual,
        num_speculative_tokens=num_tokens if is_integer(num_tokens) else 5,
        verifier=verifier_name,
        architectures=tuple(architectures),
        accuracies=tuple(tuple(ranks) for ranks in accuracies),
    )


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _canonical_names(folder: Path, entries: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Return the entries under the names above."""
    tensors: dict[str, TensorEntry] = {}
    for name, entry in entries.items():
        canonical = re.sub(r"^midlayer\.", "layers.0.", name.removeprefix("model."))
        if IGNORED.fullmatch(canonical):
            continue
        if canonical in tensors:
            got = f"{tensors[canonical].name} and {name}"
            raise CheckpointError(f"{folder} holds {canonical} twice", got=got, remedy="Remove one")
        tensors[canonical] = entry
    return tensors


def _mapping_error(checkpoint: Checkpoint, got: str) -> CheckpointError:
    return CheckpointError(
        f"the draft vocabulary of {checkpoint.folder} does not map into the target's", got=got, remedy="Use a head of this target"
    )
