"""Draft heads and exits of random weights for the tiny checkpoint ``llama-gqa``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hasten.checkpoints.formats.eagle3 import Eagle3Config, write_eagle3
from hasten.checkpoints.formats.exits import ExitsCheckpoint, write_exits
from hasten.checkpoints.formats.medusa import write_medusa
from hasten.core.early_exit import ExitCalibration
from hasten.layers.eagle import EagleHead
from hasten.layers.early_exit import ExitHeads, ExitHeadsSpec, PromptHashTable
from hasten.layers.formats.dense import DenseFormatFactory
from hasten.layers.layer_context import LayerContext
from hasten.layers.medusa import MedusaHeads, MedusaSpec
from hasten.models.eagle import eagle_spec, eagle_tensors
from hasten.models.load import load_decoder
from hasten.ops.torch.backend import TorchOps
from tests.tiny_models import redraw


def _context() -> LayerContext:
    return LayerContext(TorchOps(), DenseFormatFactory(TorchOps(), torch.float32), torch.float32)


def _write_medusa(folder: Path, target: Path, **changes: Any) -> None:
    sizes: dict[str, Any] = {"num_heads": 2, "num_layers": 1, "hidden_size": 64, "vocab_size": 101, "truncated_vocab_size": 101}
    heads = MedusaHeads(MedusaSpec(**{**sizes, "bias": True, "lm_head": "own", **changes}), _context())
    redraw(heads, 1)
    if heads.token_map is not None:
        heads.token_map.copy_(torch.arange(len(heads.token_map)))
    write_medusa(folder, heads, dtype=torch.float32, accuracies=[[0.5, 0.2], [0.3, 0.1]])


def _write_eagle(folder: Path, target: Path) -> None:
    decoder = load_decoder(target, ops=TorchOps()).decoder
    layer = {"model_type": "llama", "vocab_size": 101, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 1}
    layer |= {"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 1000.0}
    target_ids = torch.arange(0, 100, 3)
    config = Eagle3Config(layer=layer, draft_vocab_size=len(target_ids), aux_layers=(1, 2, 3))
    head = EagleHead(eagle_spec(config, decoder.spec, folder), decoder.embedding, _context())
    redraw(head, 2)
    write_eagle3(folder, config, eagle_tensors(head), target_ids, 101)


def _write_exits(folder: Path, target: Path) -> None:
    exits = ExitHeads(ExitHeadsSpec(layers=(1, 2), num_layers=3, hidden_size=64, vocab_size=101), _context())
    redraw(exits, 3)
    layers = torch.tensor([1, 2, 3], dtype=torch.int32)
    draw = torch.Generator().manual_seed(4)
    table = PromptHashTable(torch.randn(3, 64, generator=draw), layers[torch.randint(3, (8,), generator=draw)])
    values: dict[str, Any] = {"tolerance": 0.01, "certainty": 0.9, "threshold": 0.5, "window": 8, "num_texts": 9}
    values |= {"mean_layers": 2.0, "mean_risk": 0.0}
    calibrations = tuple(ExitCalibration(rule=rule, decay=decay, **values) for rule, decay in (("softmax", 4.0), ("entropy", None)))
    token_layers = layers[torch.randint(3, (101,), generator=draw)]
    checkpoint = ExitsCheckpoint(exits, calibrations, token_layers, table, (0.25, 0.5), torch.arange(0, 100, 4))
    write_exits(folder, checkpoint, dtype=torch.float32)


_WRITERS = {
    "medusa": _write_medusa,
    "medusa-truncated": lambda folder, target: _write_medusa(folder, target, truncated_vocab_size=40, lm_head="shared"),
    "medusa-model": lambda folder, target: _write_medusa(folder, target, truncated_vocab_size=40, lm_head="model"),
    "eagle": _write_eagle,
    "exits": _write_exits,
}
HEADS = tuple(_WRITERS)


def write_heads(name: str, folder: Path, target: Path) -> None:
    """Write one of ``HEADS`` for ``target``, which is ``llama-gqa`` or has its sizes."""
    _WRITERS[name](folder, target)
