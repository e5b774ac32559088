"""GPTQ: integer codes packed along the inputs, as AutoGPTQ and GPTQModel write them.

::

    X.qweight  int32 [I * bits / 32, O]        codes of an output, lowest bits first; 3-bit codes cross words
    X.qzeros   int32 [groups, O * bits / 32]   zero of each output, minus 1 in format v1
    X.scales   float [groups, O]
    X.g_idx    int32 [I]                       group of each input; absent: i // group_size

Paper: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hasten.checkpoints.quantized.bit_packing import unpack_bits
from hasten.checkpoints.quantized.module_tensors import (
    SCALE_DTYPES,
    ModuleTensors,
    check_dtype,
    check_part,
    check_scales,
    find_missing,
    find_modules,
    is_matrix,
    name_format,
    read_group_size,
    refuse_faults,
    refuse_setting,
)
from hasten.checkpoints.tensor_files import TensorFiles
from hasten.core.errors import CheckpointError, UnsupportedModel, show
from hasten.layers.formats.quant_spec import QuantSpec
from hasten.layers.formats.stored_matrix import GroupedRows, StoredMatrix

BITS = (2, 3, 4, 8)
FORMATS = {"gptq": 1, "gptq_v2": 0}  # checkpoint_format -> what to add to a stored zero
PARTS = ("qweight", "qzeros", "scales", "g_idx")
MAX_WIDTHS = 64  # each module is compared with each of them

Width = tuple[int, int | None]  # bits of a code, inputs that share a scale (None: all of an output)


def read_gptq(settings: Mapping[str, Any], files: TensorFiles) -> dict[str, StoredMatrix]:
    """Return the matrices of a GPTQ checkpoint by the name of the weight.

    Raises ``UnsupportedModel`` for other widths and layouts of codes, and ``CheckpointError`` that lists every faulty tensor.
    """
    layout = name_format(settings, "checkpoint_format", "format", default="gptq")
    refuse_setting(files, "GPTQ", "checkpoint_format", layout, tuple(FORMATS))
    widths = _read_widths(settings, files)
    faults: list[str] = []
    matrices: dict[str, StoredMatrix] = {}
    for module, tensors in find_modules(files, PARTS).items():
        required = PARTS if settings.get("desc_act") is True else PARTS[:3]
        found = find_missing(module, tensors, required)
        if not found:
            by_width = [(width, _check_tensors(module, tensors, width)) for width in widths]
            width, found = next((pair for pair in by_width if not pair[1]), by_width[0])
        if found:
            faults += found
            continue
        name, (bits, group_size) = f"{module}.weight", width
        num_inputs, num_outputs = tensors["qweight"].shape[0] * 32 // bits, tensors["qweight"].shape[1]
        parts = tuple(f"{module}.{part}" for part in PARTS if part in tensors)
        nbytes = sum(files.entries[part].nbytes for part in parts)
        size = min(group_size or num_inputs, num_inputs)
        matrices[name] = GptqMatrix(name, parts, (num_outputs, num_inputs), nbytes, files, module, bits, size, FORMATS[str(layout)])
    refuse_faults(files, "GPTQ", faults)
    return matrices


@dataclass(frozen=True)  # without slots, for the cached properties
class GptqMatrix:
    """One matrix of a GPTQ checkpoint. See ``StoredMatrix``."""

    name: str
    parts: tuple[str, ...]
    shape: tuple[int, int]
    nbytes: int
    files: TensorFiles
    module: str
    bits: int
    group_size: int  # at most the number of inputs
    zero_shift: int  # what to add to a stored zero

    @cached_property
    def spec(self) -> QuantSpec:
        channel = self.group_size == self.shape[1]
        return QuantSpec(
            scheme="GPTQ",
            kind="int",
            bits=self.bits,
            granularity="channel" if channel else "group",
            group_size=None if channel else self.group_size,
            zero=self._zero,
            reorders_inputs=self._order is not None,
        )

    def input_order(self) -> Tensor | None:
        return self._order

    def rows(self, start: int, stop: int) -> GroupedRows:
        words = self._read("qweight")[:, start:stop].t().contiguous()
        codes = unpack_bits(words, self.bits)
        if self._order is not None:
            codes = codes[:, self._order]
        scales = self._read("scales")[:, start:stop].t().to(torch.float32).clone(memory_format=torch.contiguous_format)
        check_scales(scales, f"{self.module}.scales", self.files)
        return GroupedRows(codes, scales, self.group_size, self._zeros(start, stop) if self._zero is None else self._zero)

    def _read(self, part: str) -> Tensor:
        return self.files.read(f"{self.module}.{part}")

    @cached_property
    def _zero(self) -> int | None:
        """The zero of a symmetric matrix, which is the middle code; None if groups have zeros of their own.

        Checkpoints exist whose format v2 is called v1. A matrix without any other zero than the middle code, or one less,
        is symmetric, so its values say which format it has.
        """
        middle = 1 << (self.bits - 1)
        stored = unpack_bits(self._read("qzeros"), self.bits)[:, : self.shape[0]]
        first = int(stored[0, 0])
        return middle if first in (middle - 1, middle) and bool((stored == first).all()) else None

    def _zeros(self, start: int, stop: int) -> Tensor:
        """Return the zeros of some outputs, float32 [O, G].

        Format v1 stores one less than the zero, modulo the number of codes, so the largest stored value means 0.
        """
        first = start // 32  # 32 zeros take a whole number of words at every width
        words = self._read("qzeros")[:, first * self.bits : -(-stop // 32) * self.bits]
        stored = unpack_bits(words, self.bits)[:, start - 32 * first : stop - 32 * first]
        zeros = (stored + self.zero_shift) & ((1 << self.bits) - 1)
        return zeros.t().to(torch.float32).contiguous()

    @cached_property
    def _order(self) -> Tensor | None:
        num_inputs, size = self.shape[1], self.group_size
        natural = torch.arange(num_inputs, dtype=torch.int64, device="cpu") // size
        if f"{self.module}.g_idx" not in self.parts:
            return None
        groups = self._read("g_idx").to(torch.int64)
        # All zeros: GPTQ-for-LLaMa never filled the tensor in. ExLlama and TGI read such files in order, too.
        if torch.equal(groups, natural) or not groups.any():
            return None
        by_group, order = groups.sort(stable=True)
        if torch.equal(by_group, natural):
            return order
        last = -(-num_inputs // size) - 1
        outside = groups[(groups < 0) | (groups > last)]
        counts = torch.bincount(groups, minlength=last + 1) if not len(outside) else outside
        raise CheckpointError(
            f"{self.module}.g_idx of {self.files.folder} does not put {num_inputs} inputs into groups of {size}",
            got=f"group {int(outside[0])}" if len(outside) else f"groups of {', '.join(map(str, counts[:8].tolist()))} inputs",
            allowed=f"groups 0 to {last}, all of {size} inputs but a shorter last one" if len(outside) else None,
            remedy="Download the checkpoint again",
        )


def _read_widths(settings: Mapping[str, Any], files: TensorFiles) -> list[Width]:
    """Return the widths that a module may have. The first is the default.

    GPTQModel's ``dynamic`` gives regular expressions of modules other widths, or leaves modules out. The shapes of a module's
    tensors say which width it has, so no expression of a file is run.
    """
    dynamic = settings.get("dynamic") or {}
    if not isinstance(dynamic, Mapping):
        raise CheckpointError(
            f"the quantization_config of {files.folder} has a 'dynamic' that is no table of modules",
            got=show(dynamic),
            remedy="Download the checkpoint again",
        )
    widths: dict[Width, None] = {}
    for override in ({}, *dynamic.values()):
        # Two keys only: a copy of all settings for each override would take quadratic time.
        values = override if isinstance(override, Mapping) else {}
        bits = values.get("bits", settings.get("bits"))
        refuse_setting(files, "GPTQ", "bits", bits, BITS)
        widths[bits, read_group_size(values.get("group_size", settings.get("group_size", 128)), files)] = None
    if len(widths) > MAX_WIDTHS:
        raise UnsupportedModel(
            f"the GPTQ checkpoint {files.folder} mixes too many widths and group sizes",
            got=len(widths),
            allowed=f"up to {MAX_WIDTHS}",
            remedy="Use a checkpoint of the same model in another format",
        )
    return list(widths)


def _check_tensors(module: str, tensors: ModuleTensors, width: Width) -> list[str]:
    """Return the faults of a module's tensors if it has this width."""
    bits, group_size = width
    codes = tensors["qweight"]
    faults = check_dtype(f"{module}.qweight", codes, ("I32",))
    period = math.lcm(bits, 32) // 32  # words
    if not is_matrix(codes) or codes.shape[0] % period or (period > 1 and codes.shape[1] % 32):
        described = "at least one word" if period == 1 else f"rows in multiples of {period} and columns in multiples of 32"
        return [*faults, f"{module}.qweight is {list(codes.shape)}, expected a matrix with {described}"]
    num_inputs, num_outputs = codes.shape[0] * 32 // bits, codes.shape[1]
    groups = -(-num_inputs // (group_size or num_inputs))
    faults += check_part(f"{module}.qzeros", tensors["qzeros"], (groups, -(-num_outputs * bits // 32)), ("I32",))
    faults += check_part(f"{module}.scales", tensors["scales"], (groups, num_outputs), SCALE_DTYPES)
    if "g_idx" in tensors:
        faults += check_part(f"{module}.g_idx", tensors["g_idx"], (num_inputs,), ("I32", "I64"))
    if "weight" in tensors:
        faults.append(f"{module}.weight and {module}.qweight both exist")
    return faults
