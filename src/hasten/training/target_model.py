"""``TargetModel``: the frozen model that training reads, in float32 and without a KV cache.

Shape suffixes: B sequences · S tokens per sequence · T = B·S tokens · X any shape · E hidden size · V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.checkpoints.json_values import read_json
from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import InvalidOption, UnsupportedModel, show
from hasten.layers.attention import DenseContext
from hasten.layers.formats.dense import Dense, DenseFormatFactory
from hasten.layers.layer_context import LayerContext
from hasten.layers.linear import Linear
from hasten.models.decoder import Decoder
from hasten.models.load import load_decoder, read_spec
from hasten.models.spec import DecoderSpec
from hasten.models.weights import Progress
from hasten.ops.torch.backend import TorchOps
from hasten.training.draft_score import topk_tokens


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """Hidden states of a batch."""

    last_TE: Tensor  # after the last layer, before the final norm
    aux_hidden_states: Mapping[int, Tensor]  # layer index (from 0) -> its output [T, E]


@dataclass(frozen=True, slots=True)
class TargetModel:
    decoder: Decoder  # no parameter requires a gradient
    ops: TorchOps
    config: Mapping[str, Any]
    folder: Path
    dtype: torch.dtype  # of the checkpoint's weights; trained parts are saved in it

    @classmethod
    def load(cls, folder: Path, progress: Progress | None = None) -> TargetModel:
        """Load a checkpoint. Raises ``CheckpointError``, and ``UnsupportedModel`` for quantised weights."""
        trainable_spec(folder)
        ops = TorchOps()
        loaded = load_decoder(folder, dtype="float32", ops=ops, progress=progress)
        return cls(loaded.decoder.requires_grad_(False), ops, loaded.config, folder, stored_dtype(loaded.config))

    @property
    def spec(self) -> DecoderSpec:
        return self.decoder.spec

    @property
    def layer_context(self) -> LayerContext:
        """What trained layers are built with: dense float32 weights."""
        return LayerContext(self.ops, DenseFormatFactory(self.ops, torch.float32), torch.float32)

    @property
    def lm_head_VE(self) -> Tensor:
        return dense_weight(self.decoder.lm_head).detach()

    @torch.no_grad()
    def hidden_states(self, ids_BS: Tensor, aux_layer_indices: Collection[int] = ()) -> HiddenStates:
        """Run every sequence from position 0 and keep the outputs of ``aux_layer_indices`` (from 0)."""
        context = DenseContext(self.ops, self.decoder.rotary, [ids_BS.shape[1]] * len(ids_BS), ids_BS.device)
        aux_hidden_states: dict[int, Tensor] = {}
        hooks = {layer: _store_output(aux_hidden_states, layer) for layer in aux_layer_indices}
        last_TE = self.decoder.run(self.decoder.embed(ids_BS.flatten()), context.positions_T, context, hooks=hooks)
        return HiddenStates(last_TE, aux_hidden_states)

    @torch.no_grad()
    def normed(self, states: HiddenStates) -> Tensor:
        """Return the input of the lm_head: the last hidden states after the final norm, [T, E]."""
        normed_TE: Tensor = self.decoder.norm(states.last_TE)
        return normed_TE

    def greedy_tokens(self, normed_XE: Tensor) -> Tensor:
        """Return the most likely next token of each normed hidden state, [..., E] -> [...]."""
        return topk_tokens(normed_XE.flatten(0, -2), self.lm_head_VE)[:, 0].view(normed_XE.shape[:-1])


def stored_dtype(config: Mapping[str, Any]) -> torch.dtype:
    """Return the dtype of a checkpoint's weights by its configuration; float32 if it names none."""
    name = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name, torch.float32)


def check_seq_len(seq_len: int, spec: DecoderSpec) -> None:
    """Raise ``InvalidOption`` if sequences of ``seq_len`` tokens exceed the model's context."""
    if seq_len > spec.max_positions:
        allowed = f"up to {spec.max_positions}"
        raise InvalidOption("seq_len exceeds the model's context", got=f"{seq_len} tokens", allowed=allowed)


def trainable_spec(folder: Path) -> DecoderSpec:
    """Return the spec that a folder's configuration describes. Raises like ``TargetModel.load``."""
    if os.path.isfile(folder / "config.json"):
        _refuse_quantized(folder, read_json(folder / "config.json").get("quantization_config"))
    checkpoint = Checkpoint.open(folder)
    _refuse_quantized(folder, next((matrix.spec.describe() for matrix in checkpoint.matrices.values()), None))
    return read_spec(checkpoint)


def _refuse_quantized(folder: Path, quantization: object) -> None:
    """Raise ``UnsupportedModel`` if there is a quantisation: its settings, or its scheme in words."""
    if quantization:
        raise UnsupportedModel(
            f"the weights of {folder} are quantised, and training needs them in floating point",
            got=show(quantization.get("quant_method", "quantization_config") if isinstance(quantization, dict) else quantization),
            allowed="float32, bfloat16 or float16",
            remedy="Train on the unquantised model: the result also serves the quantised one",
        )


def dense_weight(linear: Linear) -> Tensor:
    """Return the weight matrix of a layer in the dense format, with its graph."""
    assert isinstance(linear.format, Dense)
    return linear.format.weight


def _store_output(outputs: dict[int, Tensor], layer: int) -> Callable[[Tensor], None]:
    return lambda hidden_TE: outputs.update({layer: hidden_TE})
