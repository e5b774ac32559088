"""AWQ: 4-bit codes packed along the outputs, as AutoAWQ writes them for its GEMM kernel.

::

    X.qweight  int32 [I, O / 8]        bits 4i to 4i + 3 of a word hold output ORDER[i] of eight
    X.qzeros   int32 [groups, O / 8]   in the same order; may be absent without zero_point
    X.scales   float [groups, O]

Paper: Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
from hasten.core.errors import CheckpointError
from hasten.layers.formats.quant_spec import QuantSpec
from hasten.layers.formats.stored_matrix import GroupedRows, StoredMatrix

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
ZERO = 8  # the code of weight 0 without zero_point
PARTS = ("qweight", "qzeros", "scales")


def read_awq(settings: Mapping[str, Any], files: TensorFiles) -> dict[str, StoredMatrix]:
    """Return the matrices of an AWQ checkpoint by the name of the weight.

    Raises ``UnsupportedModel`` for other widths and layouts than GEMM, and ``CheckpointError`` that lists every faulty tensor.
    """
    layout = name_format(settings, "version", "checkpoint_format", "format", default="gemm")
    refuse_setting(files, "AWQ", "version", layout, ("gemm",))
    refuse_setting(files, "AWQ", "bits", settings.get("bits", settings.get("w_bit", 4)), (4,))
    has_zeros = settings.get("zero_point", True)
    refuse_setting(files, "AWQ", "zero_point", has_zeros, (True, False))
    group_size = read_group_size(settings.get("group_size", settings.get("q_group_size", 128)), files)
    faults: list[str] = []
    matrices: dict[str, StoredMatrix] = {}
    for module, tensors in find_modules(files, PARTS).items():
        found = find_missing(module, tensors, PARTS if has_zeros else ("qweight", "scales"))
        found = found or _check_tensors(module, tensors, group_size)
        if found:
            faults += found
            continue
        num_inputs, num_outputs = tensors["qweight"].shape[0], tensors["scales"].shape[1]
        parts = tuple(f"{module}.{part}" for part in PARTS if part in tensors)
        channel = group_size is None or group_size == num_inputs
        spec = QuantSpec(
            scheme="AWQ",
            kind="int",
            bits=4,
            granularity="channel" if channel else "group",
            group_size=None if channel else group_size,
            zero=None if has_zeros else ZERO,
        )
        nbytes = sum(files.entries[part].nbytes for part in parts)
        name = f"{module}.weight"
        matrices[name] = AwqMatrix(name, parts, (num_outputs, num_inputs), spec, nbytes, files, module)
    refuse_faults(files, "AWQ", faults)
    return matrices


@dataclass(frozen=True, slots=True)
class AwqMatrix:
    """One matrix of an AWQ checkpoint. See ``StoredMatrix``."""

    name: str
    parts: tuple[str, ...]
    shape: tuple[int, int]
    spec: QuantSpec
    nbytes: int
    files: TensorFiles
    module: str

    def input_order(self) -> Tensor | None:
        return None

    def rows(self, start: int, stop: int) -> GroupedRows:
        codes = _unpack_columns(self.files.read(f"{self.module}.qweight"), start, stop)
        scales = self.files.read(f"{self.module}.scales")[:, start:stop].t()
        scales = scales.to(torch.float32).clone(memory_format=torch.contiguous_format)
        check_scales(scales, f"{self.module}.scales", self.files)
        return GroupedRows(codes, scales, self.spec.group_size or self.shape[1], self._zeros(start, stop))

    def _zeros(self, start: int, stop: int) -> int | Tensor:
        """Return the zeros of some outputs, float32 [O, G], or that of all weights.

        Raises ``CheckpointError`` for stored zeros that a configuration without ``zero_point`` denies. Zeros of 0 only fill a
        place there: codes have a sign.
        """
        zeros = None
        if f"{self.module}.qzeros" in self.parts:
            zeros = _unpack_columns(self.files.read(f"{self.module}.qzeros"), start, stop)
        if self.spec.zero is None:
            assert zeros is not None, "a checkpoint with zero points has qzeros"
            return zeros.to(torch.float32)
        if zeros is not None and not ((zeros == ZERO).all() or not zeros.any()):
            raise CheckpointError(
                f"{self.module}.qzeros of {self.files.folder} holds zeros other than {ZERO}, and the configuration says that "
                "zero_point is false",
                remedy="Check that config.json belongs to these weights; if it does, download them again",
            )
        return self.spec.zero


def _unpack_columns(words: Tensor, start: int, stop: int) -> Tensor:
    """Return the codes of the outputs ``[start, stop)``, uint8 [O, rows of ``words``]."""
    first = start // 8
    words = words[:, first : -(-stop // 8)].t().clone(memory_format=torch.contiguous_format)
    codes = torch.empty((words.shape[0], 8, words.shape[1]), dtype=torch.uint8, device=words.device)
    for slot, output in enumerate(ORDER):
        codes[:, output] = (words >> (4 * slot)) & 15
    return codes.flatten(0, 1)[start - 8 * first : stop - 8 * first]


def _check_tensors(module: str, tensors: ModuleTensors, group_size: int | None) -> list[str]:
    """Return the faults of a module's tensors."""
    codes = tensors["qweight"]
    faults = check_dtype(f"{module}.qweight", codes, ("I32",))
    if not is_matrix(codes):
        return [*faults, f"{module}.qweight is {list(codes.shape)}, expected a matrix with at least one word"]
    num_inputs, num_words = codes.shape
    if num_inputs % (group_size or num_inputs):
        return [*faults, f"{module} has {num_inputs} inputs, which groups of {group_size} do not divide"]
    groups = num_inputs // (group_size or num_inputs)
    if "qzeros" in tensors:
        faults += check_part(f"{module}.qzeros", tensors["qzeros"], (groups, num_words), ("I32",))
    faults += check_part(f"{module}.scales", tensors["scales"], (groups, 8 * num_words), SCALE_DTYPES)
    if "weight" in tensors:
        faults.append(f"{module}.weight and {module}.qweight both exist")
    return faults
