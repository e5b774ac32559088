"""``kernel_faults``: what the native kernels do not take of a decoder, from its spec alone."""

from __future__ import annotations

from collections.abc import Iterator

from hasten.layers.spec import AttentionSpec, LayerSpec
from hasten.models.spec import DecoderSpec
from hasten.ops.cpu.library import Limits
from hasten.ops.cpu.limits import heads_fault, matrix_fault


def kernel_faults(spec: DecoderSpec, limits: Limits, *, int8_activations: bool = False) -> list[str]:
    """Return a clause for each shape that the kernels do not take, with the first layer that has it.

    ``int8_activations``: whether products quantise their input, which bounds the inputs of a matrix further.
    """
    found: dict[tuple[str, str], list[int]] = {}  # (part, fault): layers
    for index, layer in enumerate(spec.layers):
        for fault in _layer_faults(spec.hidden_size, layer, limits, int8_activations):
            found.setdefault(fault, []).append(index)
    faults = [
        f"layers.{layers[0]}.{part}{f' and {len(layers) - 1} other layers' if layers[1:] else ''}: {fault}"
        for (part, fault), layers in found.items()
    ]
    head = matrix_fault(limits, spec.vocab_size, spec.hidden_size, int8_activations=int8_activations)
    table = matrix_fault(limits, spec.max_positions, 1, int8_activations=False) if spec.learned_positions else None
    named = {"lm_head": head, "positions": table}
    return faults + [f"{part}: {fault}" for part, fault in named.items() if fault is not None]


def attention_fault(attention: AttentionSpec, limits: Limits) -> str | None:
    """Return what the kernels do not take of the attention of a layer; None if they take it."""
    return heads_fault(limits, attention.head_dim)


def _layer_faults(hidden_size: int, layer: LayerSpec, limits: Limits, int8_activations: bool) -> Iterator[tuple[str, str]]:
    attention, mlp = layer.attention, layer.mlp
    if (fault := attention_fault(attention, limits)) is not None:
        yield "attention", fault
    up_size = mlp.intermediate_size * (2 if mlp.gated else 1)
    matrices = {
        "attention.qkv": (attention.qkv_size, hidden_size),
        "attention.out": (hidden_size, attention.q_size),
        "mlp.up": (up_size, hidden_size),
        "mlp.down": (hidden_size, mlp.intermediate_size),
    }
    for part, (outputs, inputs) in matrices.items():
        if (fault := matrix_fault(limits, outputs, inputs, int8_activations=int8_activations)) is not None:
            yield part, fault
