"""``QuantizeOptions``: what is quantised, how, and on which text it is calibrated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from hasten.core.check_fields import Fault, check_fields
from hasten.core.engine_options import Seed, Threads
from hasten.core.errors import InvalidOption
from hasten.core.field_type import Length, OneOf, Range
from hasten.core.memory_size import MAX_BYTES, parse_bytes

FORMATS = ("compressed-tensors", "gptq", "awq", "fp8")
ACTIVATIONS = ("none", "int8", "int8-static", "fp8", "fp8-static")
CLIPS = ("none", "mse", "percentile", "output")
DTYPES = ("auto", "float32", "bfloat16", "float16")
AUTO, CAST = "auto", "cast"  # the methods beside roundings and transforms
PER_CHANNEL = -1  # as group size: one scale per output, as the formats' configurations write it


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    """None is the default of the method and the format.

    Raises ``InvalidOption`` that lists every value out of range.
    """

    method: str = "gptq"  # a method, "auto", or transforms and a rounding: "smoothquant+gptq"
    format: Annotated[str, OneOf(FORMATS)] = "compressed-tensors"
    bits: Annotated[int, Range(2, 8)] | None = None
    group_size: Annotated[int, Range(-1, 2**16)] | None = None  # inputs that share a scale; -1: one scale per output
    symmetric: bool | None = None
    activations: Annotated[str, OneOf(ACTIVATIONS)] | None = None
    clip: Annotated[str, OneOf(CLIPS)] | None = None  # of the ranges of groups
    percentile: Annotated[float, Range(50, 100, above=True)] = 99.5  # of --clip percentile
    # modules that stay as they are: names, or regular expressions after "re:"
    ignore: Annotated[tuple[str, ...], Length(0, 1024)] = ()
    samples: Annotated[int, Range(1, 2**20)] = 128  # calibration sequences
    seq_len: Annotated[int, Range(2, 2**20)] = 512  # tokens of each
    seed: Seed = 0  # of the choice of sequences
    dtype: Annotated[str, OneOf(DTYPES)] = "auto"  # of the method cast
    max_kl: Annotated[float, Range(0, 100, above=True)] | None = None  # of the method auto: limit of the mean divergence, nats
    # of the method auto: limit of the weights; bytes, or a size such as "400MB"
    target_bytes: Annotated[int, Range(1, MAX_BYTES)] | Annotated[str, Length(1, 64)] | None = None
    threads: Threads | None = None  # None: one per core that this process may use

    def __post_init__(self) -> None:
        check_fields(self, "quantisation option", InvalidOption, self._conflicts)

    def _conflicts(self) -> Iterator[Fault]:
        if self.group_size == 0:
            yield Fault("group_size", "-1 for one scale per output, or a number of inputs")
        if self.method == AUTO and (self.max_kl is None) == (self.target_bytes is None):
            yield Fault("max_kl", "one of max_kl and target_bytes with the method auto", "Give one limit")
        if self.method != AUTO and (self.max_kl is not None or self.target_bytes is not None):
            yield Fault("method", "auto with max_kl and target_bytes", "Omit the limit, or choose the method auto")
        if self.method != CAST and self.dtype != "auto":
            yield Fault("dtype", "auto without the method cast", "Omit it, or choose the method cast")
        if self.clip != "percentile" and self.percentile != 99.5:
            yield Fault("percentile", "99.5 without clip=percentile", "Omit it, or choose the clip percentile")
        if self.method == CAST and self.format != FORMATS[0]:
            yield Fault("format", f"{FORMATS[0]}, the default, with the method {CAST}", "Omit it")
        if self.method == CAST and self.ignore:
            yield Fault("ignore", f"nothing with the method {CAST}", "Omit it")
        if self.method in (AUTO, CAST):
            names = ("bits", "activations") if self.method == AUTO else ("bits", "group_size", "symmetric", "activations", "clip")
            yield from (
                Fault(name, f"None with the method {self.method}", "Omit it") for name in names if getattr(self, name) is not None
            )

    @property
    def max_bytes(self) -> int | None:
        """``target_bytes`` as a number. Raises ``InvalidOption``."""
        return None if self.target_bytes is None else parse_bytes(self.target_bytes, "target_bytes")
