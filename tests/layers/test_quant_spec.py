"""Which schemes have int8 activations, and their names."""

from __future__ import annotations

from typing import Any

import pytest

from hasten.layers.formats.quant_spec import ActivationSpec, QuantSpec

INT8, INT4 = ActivationSpec("int", 8, dynamic=True), ActivationSpec("int", 4, dynamic=True)
FP8 = ActivationSpec("float", 8, dynamic=True)


def spec(**values: Any) -> QuantSpec:
    return QuantSpec(**{"scheme": "GPTQ", "kind": "int", "bits": 4, "granularity": "channel", **values})


@pytest.mark.parametrize(
    ("scheme", "auto", "int8"),
    [
        (spec(), False, True),
        (spec(activations=INT8), True, True),
        (spec(activations=INT4), False, True),
        (spec(activations=FP8), False, True),
        (spec(kind="float", bits=8, activations=INT8), False, False),
        (spec(kind="float", bits=8, activations=FP8), False, False),
    ],
)
def test_int8_activations_are_for_integer_weights(scheme: QuantSpec, auto: bool, int8: bool) -> None:
    assert [scheme.has_int8_activations(value) for value in ("auto", "int8", "float")] == [auto, int8, False]


@pytest.mark.parametrize(
    ("scheme", "kind", "bits", "name"),
    [
        ("GPTQ", "int", 3, "GPTQ int3"),
        ("compressed-tensors", "float", 8, "compressed-tensors fp8"),
        ("FP8", "float", 8, "FP8"),
        ("Q4_K", "int", 4, "Q4_K"),
    ],
)
def test_names_say_the_bits_once(scheme: str, kind: Any, bits: int, name: str) -> None:
    assert spec(scheme=scheme, kind=kind, bits=bits).name == name
    assert spec(scheme=scheme, kind=kind, bits=bits).describe().startswith(f"{name}, scale per output")
