"""``Recipe``: the methods and the scheme that the options choose, in full."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hasten.compress.quantize import rounding, transforms
from hasten.compress.quantize.clip import build_clip
from hasten.compress.quantize.grid import Clip
from hasten.compress.quantize.options import PER_CHANNEL, QuantizeOptions
from hasten.compress.quantize.rounding.base import Rounding
from hasten.compress.quantize.transforms.base import Transform
from hasten.core.errors import InvalidOption, nearest
from hasten.layers.formats.quant_spec import ActivationSpec, QuantSpec

SCHEMES = {"compressed-tensors": "compressed-tensors", "gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8"}
FP8_BLOCK = (128, 128)  # outputs, inputs: the only tile that engines have kernels for
DEFAULT_GROUP = 128


@dataclass(frozen=True, slots=True)
class Recipe:
    method: str
    format: str
    transforms: tuple[Transform, ...]
    rounding: Rounding
    spec: QuantSpec  # of every quantised matrix
    clip: Clip | None

    @property
    def needs_hessian(self) -> bool:
        clips = self.clip is not None and self.clip.needs_hessian
        return clips or self.rounding.needs_hessian or any(transform.needs_hessian for transform in self.transforms)

    @property
    def needs_calibration(self) -> bool:
        """Whether a text passes through the model; round to nearest needs none."""
        return self.needs_hessian or bool(self.transforms) or self.has_static_activations

    @property
    def has_static_activations(self) -> bool:
        return self.spec.activations is not None and not self.spec.activations.dynamic

    def with_bits(self, bits: int) -> Recipe:
        """Return the recipe with integers of another width, with the default groups of that width."""
        size = None if bits == 8 else self.spec.group_size or DEFAULT_GROUP
        zero = None if self.spec.has_offsets else 1 << (bits - 1)
        spec = dataclasses.replace(
            self.spec, bits=bits, granularity="channel" if size is None else "group", group_size=size, zero=zero
        )
        return dataclasses.replace(self, spec=spec)


def rounding_names() -> tuple[str, ...]:
    return _names(rounding.__path__)


def transform_names() -> tuple[str, ...]:
    return _names(transforms.__path__)


def method_class(name: str) -> type[Any]:
    """Return the class of a rounding or a transform."""
    package = rounding if name in rounding_names() else transforms
    cls: type[Any] = importlib.import_module(f"{package.__name__}.{name}").METHOD
    return cls


def build_recipe(options: QuantizeOptions, method_options: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe of the options.

    ``method_options`` are fields of the methods. Raises ``InvalidOption`` for an unknown method, and for options that do not go
    together.
    """
    names = _split_method(options.method)
    rounding_name = names[-1]
    methods = _build_methods(names, method_options or {})
    spec = _float_spec(options) if rounding_name == "fp8" else _integer_spec(options, names)
    clip = None if rounding_name == "fp8" else build_clip(options.clip or _default_clip(names), options.percentile)
    if rounding_name == "fp8" and options.clip not in (None, "none"):
        raise _conflict("clip", options.clip, "FP8 has no ranges that could be clipped")
    if rounding_name == "hqq" and options.clip not in (None, "none"):
        raise _conflict("clip", options.clip, "HQQ finds its own ranges")
    return Recipe(options.method, options.format, tuple(methods[:-1]), methods[-1], spec, clip)


def _split_method(method: str) -> list[str]:
    """Return the transforms and, last, the rounding of a method such as "smoothquant+gptq"."""
    names = method.split("+")
    roundings, others = rounding_names(), transform_names()
    unknown = next((name for name in names if name not in (*roundings, *others)), None)
    if unknown is not None:
        raise InvalidOption(
            "unknown quantisation method", got=repr(unknown), remedy=nearest(unknown, (*roundings, *others, "auto"))
        )
    if names[-1] in others:
        names.append("rtn")
    if any(name in roundings for name in names[:-1]) or len(set(names)) < len(names):
        raise InvalidOption(
            "these methods do not go together",
            got=method,
            allowed=f"transforms ({', '.join(others)}), each once, and then one rounding ({', '.join(roundings)}), joined by +",
        )
    return names


def _build_methods(names: Sequence[str], method_options: Mapping[str, Any]) -> list[Any]:
    classes = {name: method_class(name) for name in names}
    fields = {name: [field.name for field in dataclasses.fields(cls)] for name, cls in classes.items()}
    for option in method_options:
        if not any(option in known for known in fields.values()):
            raise InvalidOption(
                f"the option {option} of a method has no effect with the method {'+'.join(names)}",
                allowed=", ".join(field for known in fields.values() for field in known) or "no option of a method",
                remedy="Omit it, or choose the method that has it",
            )
    return [
        cls(**{name: value for name, value in method_options.items() if name in fields[method]}) for method, cls in classes.items()
    ]


def _integer_spec(options: QuantizeOptions, names: Sequence[str]) -> QuantSpec:
    activations = options.activations or ("int8" if "smoothquant" in names else "none")
    if activations.startswith("fp8"):
        raise _conflict("activations", activations, "FP8 activations go with the method fp8")
    bits = options.bits or (4 if activations == "none" else 8)
    size = options.group_size or (PER_CHANNEL if bits == 8 else DEFAULT_GROUP)
    symmetric = options.symmetric if options.symmetric is not None else options.format != "awq"
    return QuantSpec(
        scheme=SCHEMES[options.format],
        kind="int",
        bits=bits,
        granularity="channel" if size == PER_CHANNEL else "group",
        group_size=None if size == PER_CHANNEL else size,
        zero=1 << (bits - 1) if symmetric else None,
        activations=_activations(activations, None),
    )


def _float_spec(options: QuantizeOptions) -> QuantSpec:
    for name in ("bits", "group_size", "symmetric"):
        value = getattr(options, name)
        if value is not None and (name, value) != ("bits", 8):
            raise _conflict(name, value, "FP8 has 8 bits, no groups and no zero points")
    activations = options.activations or "fp8"
    if activations.startswith("int8"):
        raise _conflict("activations", activations, "FP8 weights go with FP8 activations or none")
    block = FP8_BLOCK if options.format == "fp8" else None
    return QuantSpec(
        scheme=SCHEMES[options.format],
        kind="float",
        bits=8,
        granularity="channel" if block is None else "block",
        block=block,
        activations=_activations(activations, None if block is None else block[1]),
    )


def _activations(name: str, group_size: int | None) -> ActivationSpec | None:
    if name == "none":
        return None
    dynamic = not name.endswith("static")
    granularity: Literal["tensor", "token", "group"] = "tensor" if not dynamic else "token" if group_size is None else "group"
    size = group_size if granularity == "group" else None
    return ActivationSpec("int" if name.startswith("int") else "float", 8, dynamic, granularity, size)


def _default_clip(names: Sequence[str]) -> str:
    return "output" if "awq" in names and names[-1] == "rtn" else "none"


def _conflict(option: str, value: object, reason: str) -> InvalidOption:
    return InvalidOption(
        f"--{option.replace('_', '-')} does not go with the other options", got=str(value), allowed=reason, remedy="Omit it"
    )


def _names(path: Any) -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(path) if module.name not in ("base", "scaled_input")))
