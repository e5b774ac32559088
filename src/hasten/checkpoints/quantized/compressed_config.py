"""``read_groups``: what a ``quantization_config`` of compressed-tensors says about the modules.

The keys are those of ``compressed_tensors.quantization.QuantizationConfig``, version 0.20, and older spellings. ``ignore`` and
``quantization_status`` are not read: the tensors show which modules are quantised.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hasten.checkpoints.json_values import are_integers, are_strings, is_integer
from hasten.checkpoints.quantized.microscaling import FP4_ZERO
from hasten.core.errors import CheckpointError, UnsupportedModel, nearest, show
from hasten.layers.formats.quant_spec import ActivationSpec, QuantSpec

SCHEME = "compressed-tensors"
Number = Literal["int", "fp8", "fp4"]
Granularity = Literal["tensor", "channel", "group", "block"]

# By format: the numbers that it stores, and the granularities of their scales.
_ALL: tuple[Granularity, ...] = ("tensor", "channel", "group", "block")
FORMATS: dict[str, tuple[tuple[Number, ...], tuple[Granularity, ...]]] = {
    "pack-quantized": (("int",), _ALL),
    "int-quantized": (("int",), _ALL),
    "float-quantized": (("fp8",), _ALL),
    "naive-quantized": (("int", "fp8"), _ALL),
    "nvfp4-pack-quantized": (("fp4",), ("group",)),
    "mxfp4-pack-quantized": (("fp4",), ("group",)),
    "mxfp8-quantized": (("fp8",), ("group",)),
}
_GRANULARITIES: dict[str, Granularity] = {
    "tensor": "tensor",
    "channel": "channel",
    "group": "group",
    "tensor_group": "group",
    "block": "block",
}
_ACTIVATION_GRANULARITIES: dict[str, Literal["tensor", "token", "group"]] = {
    "tensor": "tensor",
    "token": "token",
    "group": "group",
    "tensor_group": "group",
}


@dataclass(frozen=True, slots=True)
class ModuleGroup:
    """Modules that are stored in one way."""

    targets: tuple[str, ...]
    format: str
    spec: QuantSpec
    has_group_index: bool  # ``weight_g_idx`` says which group each input belongs to


def read_groups(settings: Mapping[str, Any]) -> list[ModuleGroup]:
    """Return the groups of modules with quantised weights; none if only the KV cache is quantised.

    Raises ``UnsupportedModel`` for what hasten does not read, and ``CheckpointError`` for values that are not valid.
    """
    _refuse_sparsity_and_transforms(settings)
    groups = settings.get("config_groups") or {}
    if settings.get("format") == "dense":
        return []
    if not isinstance(groups, Mapping):
        raise _invalid("config_groups", groups, "a table of groups")
    read = [_read_group(group, settings.get("format")) for group in groups.values()]
    return [group for group in read if group is not None]


def _refuse_sparsity_and_transforms(settings: Mapping[str, Any]) -> None:
    sparsity, transforms = settings.get("sparsity_config"), settings.get("transform_config")
    form = sparsity.get("format", "dense") if isinstance(sparsity, Mapping) else sparsity or "dense"
    if form != "dense":
        raise _unsupported("sparse weights", form, "dense weights", "Use a checkpoint that is not sparse")
    if transforms and not (isinstance(transforms, Mapping) and not transforms.get("config_groups")):
        remedy = "Use a checkpoint without a 'transform_config'"
        raise _unsupported("weights that need transforms of their inputs", transforms, "no transforms", remedy)


def _read_group(group: object, top_format: object) -> ModuleGroup | None:
    """Return one group; None for a group that quantises nothing."""
    if not isinstance(group, Mapping):
        raise _invalid("config_groups", group, "groups with 'targets' and 'weights'")
    targets, weights, form = group.get("targets"), group.get("weights"), group.get("format") or top_format
    if not are_strings(targets):
        raise _invalid("targets", targets, "a list of names of modules")
    inputs, outputs = group.get("input_activations"), group.get("output_activations")
    if outputs or (inputs and not weights):
        raise _unsupported(
            "activations that are quantised without weights", outputs or inputs, "quantised inputs of quantised weights"
        )
    if not weights:
        return None
    if not isinstance(form, str) or form not in FORMATS:
        remedy = nearest(form, FORMATS) if isinstance(form, str) else "Use a checkpoint in one of these formats"
        raise _unsupported("weights in this format", form, ", ".join(FORMATS), remedy)
    spec = _read_weights(weights, form, _read_activations(inputs))
    return ModuleGroup(tuple(targets), form, spec, _has_group_index(weights, spec))


def _read_weights(values: object, form: str, activations: ActivationSpec | None) -> QuantSpec:
    kind, bits, symmetric, strategy, group_size = _read_numbers("weights", values)
    numbers, granularities = FORMATS[form]
    number = _number(kind, bits)
    if number not in numbers:
        raise _unsupported(f"{form} weights of this type", f"{kind}{bits}", ", ".join(_NAMES[name] for name in numbers))
    granularity = _GRANULARITIES.get(strategy)
    if granularity not in granularities or (strategy == "tensor_group") != (form == "nvfp4-pack-quantized"):
        raise _unsupported(
            f"the strategy of {form} weights", strategy, "tensor_group" if number == "fp4" else ", ".join(granularities)
        )
    if not symmetric and kind == "float":
        raise _unsupported("floating-point weights with zero points", "symmetric: false", "symmetric: true")
    assert isinstance(values, Mapping)
    if values.get("dynamic"):
        raise _invalid("dynamic", values["dynamic"], "false for weights")
    zero = {"fp8": None, "fp4": FP4_ZERO, "int": 1 << (bits - 1) if symmetric else None}[number]
    return QuantSpec(
        scheme=SCHEME,
        kind=kind,
        bits=bits,
        granularity=granularity,
        group_size=group_size if granularity == "group" else None,
        block=_read_block(values.get("block_structure")) if granularity == "block" else None,
        zero=zero,
        activations=activations,
    )


def _read_activations(values: object) -> ActivationSpec | None:
    if not values:
        return None
    kind, bits, symmetric, strategy, group_size = _read_numbers("input_activations", values)
    assert isinstance(values, Mapping)
    dynamic = values.get("dynamic", False)
    if dynamic not in (True, False, "local", None):
        raise _invalid("dynamic", dynamic, "true, false or 'local'")
    granularity = _ACTIVATION_GRANULARITIES.get(strategy)
    if granularity is None or (granularity != "tensor" and not dynamic):
        allowed = ", ".join(_ACTIVATION_GRANULARITIES) if dynamic else "tensor"
        raise _unsupported(f"the strategy of {'dynamic' if dynamic else 'static'} activations", strategy, allowed)
    if not symmetric:
        raise _unsupported("activations with zero points", "symmetric: false", "symmetric: true")
    # "local": the scale of a group is computed at run time, and it has a stored factor for the whole tensor.
    return ActivationSpec(kind, bits, bool(dynamic), granularity, group_size if granularity == "group" else None)


def _read_numbers(key: str, values: object) -> tuple[Literal["int", "float"], int, bool, str, int | None]:
    """Return type, bits, symmetry, strategy and group size of weights or activations."""
    if not isinstance(values, Mapping):
        raise _invalid(key, values, "a table")
    bits, kind, symmetric = values.get("num_bits", 8), values.get("type", "int"), values.get("symmetric", True)
    if not is_integer(bits, 1, 64):
        raise _invalid("num_bits", bits, "bits of a number")
    if kind not in ("int", "float", "INT", "FLOAT"):
        raise _invalid("type", kind, "int or float")
    if not isinstance(symmetric, bool):
        raise _invalid("symmetric", symmetric, "true or false")
    strategy, group_size = values.get("strategy"), values.get("group_size")
    if group_size is not None and group_size != -1 and not is_integer(group_size, 1, 2**31):
        raise _invalid("group_size", group_size, "a number of inputs, -1 or null")
    if strategy is None:  # the library's rule
        strategy = {None: "tensor", -1: "channel"}.get(group_size, "group")
    if not isinstance(strategy, str):
        raise _invalid("strategy", strategy, "a name")
    strategy = strategy.lower()
    if strategy in ("group", "tensor_group") and not is_integer(group_size):
        raise _invalid("group_size", group_size, "a number of inputs")
    return "int" if kind.lower() == "int" else "float", bits, symmetric, strategy, group_size


def _read_block(value: object) -> tuple[int, int]:
    if isinstance(value, str):  # older versions write "128x128"
        value = [int(size) for size in value.split("x")] if re.fullmatch(r"[0-9]{1,9}x[0-9]{1,9}", value) else value
    if not are_integers(value, 1, 2**31) or len(value) != 2:
        raise _invalid("block_structure", value, "[outputs, inputs]")
    return value[0], value[1]


def _has_group_index(weights: Mapping[str, Any], spec: QuantSpec) -> bool:
    order = weights.get("actorder")
    if not isinstance(order, str | bool | None):
        raise _invalid("actorder", order, "'group', 'weight' or null")
    names_group = order is True or (isinstance(order, str) and order.lower() in ("group", "dynamic"))
    return names_group and spec.granularity == "group"


def _number(kind: str, bits: int) -> Number | None:
    if kind == "int":
        return "int" if 2 <= bits <= 8 else None
    return "fp8" if bits == 8 else "fp4" if bits == 4 else None


_NAMES: dict[Number, str] = {"int": "int2 to int8", "fp8": "float8", "fp4": "float4"}


def _unsupported(what: str, got: object, allowed: str, remedy: str = "Use a checkpoint of another scheme") -> UnsupportedModel:
    text = got if isinstance(got, str) and len(got) < 80 else show(got)
    return UnsupportedModel(f"hasten does not read {what} of compressed-tensors", got=text, allowed=allowed, remedy=remedy)


def _invalid(key: str, value: object, allowed: str) -> CheckpointError:
    return CheckpointError(
        f"the quantization_config of config.json has no valid '{key}'",
        got=show(value),
        allowed=allowed,
        remedy="Download the checkpoint again",
    )
