"""``QuantSpec``: how a quantised matrix is stored.

Readers, kernels, reports and writers share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ActivationSpec:
    """How a checkpoint wants the input of a product quantised."""

    kind: Literal["int", "float"]
    bits: int
    dynamic: bool  # the scale is computed at run time; else it is stored
    granularity: Literal["tensor", "token", "group"] = "token"
    group_size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantSpec:
    """The scheme of one matrix [O, I].

    ``granularity`` says what shares a scale: the whole tensor, an output ("channel"), ``group_size`` inputs of an output ("group"),
    or a tile ``block`` of [outputs, inputs].
    """

    scheme: str  # as users know it: "GPTQ", "AWQ", "compressed-tensors", "FP8", "Q4_K"
    kind: Literal["int", "float"]
    bits: int  # of a code
    granularity: Literal["tensor", "channel", "group", "block"]
    group_size: int | None = None
    block: tuple[int, int] | None = None
    zero: int | None = None  # the code of weight 0 in all groups; None: groups have offsets, or codes are floats
    is_nested: bool = False  # scales and offsets are bytes times a float16 for each 256 inputs
    activations: ActivationSpec | None = None  # None: products are weight-only
    reorders_inputs: bool = False  # groups hold inputs in another order (GPTQ's desc_act)

    @property
    def has_offsets(self) -> bool:
        """Whether each group has an offset of its own."""
        return self.kind == "int" and self.zero is None

    @property
    def name(self) -> str:
        """The scheme and its bits, such as "GPTQ int4"; "Q4_K" and "FP8" say their bits themselves."""
        return self.scheme if str(self.bits) in self.scheme else f"{self.scheme} {'int' if self.kind == 'int' else 'fp'}{self.bits}"

    def has_int8_activations(self, activations: str) -> bool:
        """Whether products quantise their input to int8, with the engine option ``activations``.

        "int8": if weights are integers; "auto": if the scheme does, too; "float": never.
        """
        if self.kind != "int" or activations == "float":
            return False
        own = self.activations
        return activations == "int8" or (own is not None and own.kind == "int" and own.bits == 8)

    def describe(self) -> str:
        """Return the scheme in words, such as "GPTQ int4, groups of 128, offsets"."""
        sizes = {"tensor": "one scale", "channel": "scale per output", "group": f"groups of {self.group_size}"}
        size = sizes.get(self.granularity) or "blocks of {} x {}".format(*(self.block or ()))
        parts = [self.name, size]
        if self.has_offsets:
            parts.append("offsets")
        if self.reorders_inputs:
            parts.append("activation order")
        if self.activations is not None:
            dynamic = "dynamic" if self.activations.dynamic else "static"
            parts.append(f"{dynamic} {'int' if self.activations.kind == 'int' else 'fp'}{self.activations.bits} activations")
        return ", ".join(parts)
