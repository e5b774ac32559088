"""The names that configurations give to activation functions."""

from __future__ import annotations

from hasten.layers.spec import Activation

GELU: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
}
GATED: dict[str, Activation] = {"silu": "silu", "swish": "silu", **GELU}
