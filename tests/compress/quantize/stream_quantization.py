"""A quantised model's logits, layer by layer in memory: statistics, factors, rounding, and the rounded layer.

Shape suffixes: B sequences · S tokens per sequence · E hidden size · T tokens · V vocabulary · I inputs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from hasten.checkpoints.reader import Checkpoint
from hasten.compress.quantize.grid import Grid
from hasten.compress.quantize.statistics import InputStatistics
from hasten.compress.quantize.transforms.base import Transform
from hasten.compress.quantize.transforms.scaled_input import dense_weight, scaled_inputs
from hasten.layers.decoder_layer import DecoderLayer
from hasten.layers.linear import Linear
from hasten.models.layer_stream import LayerStream
from hasten.quality.documents import HELD_OUT

DEMO = HELD_OUT.parent / "model"


def held_out_ids(num_sequences: int, length: int, *, calibration: bool) -> Tensor:
    """Return token ids of the demo's held-out texts: their beginnings, or what follows these for calibration. [B, S]"""
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    texts = [json.loads(line)["text"] for line in HELD_OUT.read_text(encoding="utf-8").splitlines()]
    ids = (encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False))
    parts = [text[length:] if calibration else text for text in ids if len(text) >= 2 * length]
    return torch.tensor([part[:length] for part in parts[:num_sequences]])


@dataclass(frozen=True, slots=True)
class Quantization:
    grid: Grid
    transform: Transform | None = None
    int8_activations: bool = False  # one scale per token


def linears(layer: DecoderLayer) -> dict[str, Linear]:
    return {name: module for name, module in layer.named_modules() if isinstance(module, Linear)}


def measure(stream: LayerStream, layer: DecoderLayer, index: int, hidden_BSE: Tensor) -> dict[str, InputStatistics]:
    """Return the statistics of every matrix of the layer."""
    statistics, hooks = {}, []
    for name, linear in linears(layer).items():
        statistics[name] = found = InputStatistics.empty(linear.format.in_features, with_hessian=True)
        hooks.append(linear.register_forward_pre_hook(lambda _, inputs, found=found: found.add(inputs[0])))
    for _ in stream.run(layer, index, hidden_BSE):
        pass
    for hook in hooks:
        hook.remove()
    return statistics


def int8(x: Tensor) -> Tensor:
    """Return the numbers rounded to int8 with one scale per row."""
    scales = x.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return (x / scales).round() * scales


def _int8_inputs(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (int8(inputs[0]),)


def _run(stream: LayerStream, layer: DecoderLayer, index: int, hidden_BSE: Tensor) -> Tensor:
    return torch.cat([outputs for _, outputs in stream.run(layer, index, hidden_BSE)])


@torch.no_grad()
def logits(folder: Path, evaluated_BS: Tensor, calibration_BS: Tensor, quantization: Quantization | None) -> Tensor:
    """Return the logits of every position of ``evaluated_BS``, [T, V]; None: of the model as it is.

    The layers before are quantised already when a layer is calibrated.
    """
    stream = LayerStream.open(Checkpoint.open(folder))
    hidden_BSE, seen_BSE = stream.embed(evaluated_BS), stream.embed(calibration_BS)
    for index in range(stream.spec.num_layers):
        layer = stream.layer(index)
        if quantization is not None:
            _quantize(layer, measure(stream, layer, index, seen_BSE), quantization)
            seen_BSE = _run(stream, layer, index, seen_BSE)
        hidden_BSE = _run(stream, layer, index, hidden_BSE)
    return stream.logits(hidden_BSE.flatten(0, 1))


def _quantize(layer: DecoderLayer, statistics: dict[str, InputStatistics], quantization: Quantization) -> None:
    grid, transform = quantization.grid, quantization.transform
    for scaled in scaled_inputs(layer) if transform is not None else ():
        found = statistics[scaled.name]
        scales_I = transform.scales(scaled, dense_weight(scaled.consumer), found, grid)
        scaled.apply(scales_I)
        statistics[scaled.name] = found.divided(scales_I)
    for name, linear in linears(layer).items():
        weights_OI = dense_weight(linear)
        weights_OI.copy_(grid.round(weights_OI, grid.fit(weights_OI, statistics[name])).dequantize())
        if quantization.int8_activations:
            linear.register_forward_pre_hook(_int8_inputs)


def mean_kl(reference_TV: Tensor, candidate_TV: Tensor) -> float:
    """Return the mean of KL(reference || candidate), in nats."""
    return float(kl(reference_TV, candidate_TV).mean())


def kl(reference_TV: Tensor, candidate_TV: Tensor) -> Tensor:
    """Return KL(reference || candidate) of every position, in nats."""
    logp_TV, logq_TV = reference_TV.log_softmax(-1), candidate_TV.log_softmax(-1)
    return (logp_TV.exp() * (logp_TV - logq_TV)).sum(-1)
