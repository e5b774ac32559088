"""``TargetModel``: the frozen model that something is trained beside, in float32 and without a KV cache.

Shape suffixes: B windows · W tokens of a window · T = B·W tokens, window after window · E hidden size · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import UnsupportedModel
from hasten.layers.attention_context import DenseContext
from hasten.layers.formats.dense import Dense
from hasten.models.decoder import Decoder
from hasten.models.family import find_family
from hasten.models.load import Progress, load_decoder
from hasten.models.spec import DecoderSpec
from hasten.ops.torch.backend import TorchOps
from hasten.training.count_accepted import likeliest


@dataclass(frozen=True, slots=True)
class States:
    """Hidden states of a batch, without a graph."""

    last_TE: Tensor  # after the last layer, before the final norm
    aux_hidden_states: Mapping[int, Tensor]  # [T, E] after layer i


@dataclass(frozen=True, slots=True)
class TargetModel:
    decoder: Decoder  # no parameter of it requires a gradient
    ops: TorchOps
    config: Mapping[str, Any]
    folder: Path
    dtype: torch.dtype  # what the checkpoint itself is stored in, and trained parts are saved in

    @classmethod
    def load(cls, folder: Path, progress: Progress | None = None) -> TargetModel:
        """Raises ``CheckpointError``, and ``UnsupportedModel`` for quantised weights."""
        trainable_spec(folder)
        ops = TorchOps()
        loaded = load_decoder(folder, dtype="float32", ops=ops, progress=progress)
        return cls(loaded.decoder.requires_grad_(False), ops, loaded.config, folder, _own_dtype(loaded.config))

    @property
    def spec(self) -> DecoderSpec:
        return self.decoder.spec

    @property
    def lm_head_VE(self) -> Tensor:
        """The weight of the vocabulary projection."""
        matrix = self.decoder.lm_head.format
        assert isinstance(matrix, Dense)
        return matrix.weight.detach()

    def states(self, ids_BW: Tensor, aux_layer_indices: Collection[int] = ()) -> States:
        """Every window read from position 0; ``aux_layer_indices`` names the layers (from 0) whose states are kept."""
        context = DenseContext(self.ops, self.decoder.rotary, [ids_BW.shape[1]] * len(ids_BW))
        kept: dict[int, Tensor] = {}
        with torch.no_grad():
            embedded_TE = self.decoder.embed(ids_BW.flatten())
            last_TE = self.decoder.run(
                embedded_TE, context.positions_T, context, hooks={layer: _keeper(kept, layer) for layer in aux_layer_indices}
            )
        return States(last_TE, kept)

    def normed(self, states: States) -> Tensor:
        """The final norm of the last states: what the vocabulary projection reads. [T, E]"""
        with torch.no_grad():
            normed_TE: Tensor = self.decoder.norm(states.last_TE)
        return normed_TE

    def choices(self, normed_TE: Tensor) -> Tensor:
        """The token that the model finds most likely after each. [T]"""
        return likeliest(normed_TE, self.lm_head_VE)[:, 0]


def trainable_spec(folder: Path) -> DecoderSpec:
    """From the configuration alone. Raises like ``TargetModel.load``."""
    config = Checkpoint.open(folder).config
    method = config.get("quantization_config")
    if method:
        raise UnsupportedModel(
            f"the weights of {folder} are quantised, and training needs them in floating point",
            got=method.get("quant_method", "quantization_config") if isinstance(method, dict) else method,
            allowed="float32, bfloat16 or float16",
            remedy="Train on the model that it was made from: the result serves the quantised one too",
        )
    return find_family(config).spec(config)


def _keeper(kept: dict[int, Tensor], layer: int) -> Any:
    def keep(hidden_TE: Tensor) -> None:
        kept[layer] = hidden_TE

    return keep


def _own_dtype(config: Mapping[str, Any]) -> torch.dtype:
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name, torch.float32)
