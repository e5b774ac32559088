"""``TrainableModel``: a decoder of which every parameter is trained, in float32.

Shape suffixes: B sequences · S tokens per sequence · T = B·S tokens · E hidden size · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.checkpoints.side_files import copy_side_files
from hasten.core.errors import CheckpointError
from hasten.layers.attention import DenseContext
from hasten.layers.formats.dense import Dense
from hasten.models.decoder import Decoder
from hasten.models.family import find_family
from hasten.models.load import load_decoder
from hasten.models.save import write_decoder
from hasten.models.spec import DecoderSpec
from hasten.ops.torch.backend import TorchOps
from hasten.training.target_model import HiddenStates, stored_dtype, trainable_spec

INIT_STD = 0.02  # of the initial matrices


@dataclass(frozen=True, slots=True)
class TrainableModel:
    decoder: Decoder  # every parameter requires a gradient
    ops: TorchOps
    config: Mapping[str, Any]
    dtype: torch.dtype  # in which ``write`` stores the weights

    @classmethod
    def load(cls, folder: Path, ops: TorchOps | None = None) -> TrainableModel:
        """Load a checkpoint. Raises ``CheckpointError``, and ``UnsupportedModel`` for quantised weights."""
        trainable_spec(folder)
        ops = ops or TorchOps()
        loaded = load_decoder(folder, dtype="float32", ops=ops)
        return cls(loaded.decoder.requires_grad_(True), ops, loaded.config, stored_dtype(loaded.config))

    @classmethod
    def new(cls, config: Mapping[str, Any], seed: int, ops: TorchOps | None = None) -> TrainableModel:
        """Return a model with random weights.

        Raises ``UnsupportedModel`` for a configuration that no family reads.
        """
        ops = ops or TorchOps()
        decoder = Decoder(find_family(config).spec(config), ops, torch.float32)
        _init_weights(decoder, seed)
        return cls(decoder.requires_grad_(True), ops, config, stored_dtype(config))

    @property
    def spec(self) -> DecoderSpec:
        return self.decoder.spec

    @property
    def lm_head_VE(self) -> Tensor:
        """The weight of the lm_head, with its graph."""
        weight_format = self.decoder.lm_head.format
        assert isinstance(weight_format, Dense)
        return weight_format.weight

    def hidden_states(self, ids_BS: Tensor, aux_layer_indices: Collection[int] = ()) -> HiddenStates:
        """Run every sequence from position 0 and keep the outputs of some layers, with their graph.

        ``aux_layer_indices`` count from 0.
        """
        context = DenseContext(self.ops, self.decoder.rotary, [ids_BS.shape[1]] * len(ids_BS), ids_BS.device)
        aux: dict[int, Tensor] = {}
        hooks = {layer: (lambda hidden_TE, layer=layer: aux.update({layer: hidden_TE})) for layer in aux_layer_indices}
        last_TE = self.decoder.run(self.decoder.embed(ids_BS.flatten()), context.positions_T, context, hooks=hooks)
        return HiddenStates(last_TE, aux)

    def normed(self, states: HiddenStates) -> Tensor:
        """Return the input of the lm_head: the last hidden states after the final norm, [T, E]."""
        normed_TE: Tensor = self.decoder.norm(states.last_TE)
        return normed_TE

    def write(self, folder: Path, side_files_of: Path | None = None, dtype: torch.dtype | None = None) -> None:
        """Write a checkpoint that transformers, vLLM and hasten load. ``dtype`` None: that of ``self``.

        ``side_files_of`` is the model whose tokenizer and templates belong to this one. Raises ``CheckpointError`` for weights that
        are not finite in the dtype, and ``OSError``.
        """
        stored = dtype or self.dtype
        for name, parameter in self.decoder.named_parameters():
            if not bool(parameter.isfinite().all()):
                raise CheckpointError(f"the trained weights {name} are not finite", remedy="Train with a smaller learning rate")
            if not bool(parameter.to(stored).isfinite().all()):
                named = str(stored).removeprefix("torch.")
                raise CheckpointError(f"the weights {name} are too large for {named}", remedy="Cast the model to bfloat16 first")
        write_decoder(folder, self.decoder, find_family(self.config), self.config, stored)
        if side_files_of is not None:
            copy_side_files(side_files_of, folder)


@torch.no_grad()
def _init_weights(decoder: Decoder, seed: int) -> None:
    """Initialise like GPT-2 (Radford et al., 2019): smaller matrices where they add to the residual."""
    generator = torch.Generator().manual_seed(seed)
    residual_std = INIT_STD / (2 * decoder.spec.num_layers) ** 0.5
    for name, parameter in sorted(decoder.named_parameters()):
        if parameter.ndim > 1:
            residual = name.endswith((".out.format.weight", ".down.format.weight"))
            parameter.normal_(0.0, residual_std if residual else INIT_STD, generator=generator)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
