"""FP8: e4m3 weights with float scales, as DeepSeek, transformers and AutoFP8 write them.

::

    X.weight            float8_e4m3fn [O, I]
    X.weight_scale_inv  float or 8-bit exponent [ceil(O / rows), ceil(I / columns)] of blocks; [O, 1] or [O]; or one number
    X.input_scale       one number, with static activations

A weight is value * scale in spite of the name. AutoFP8 says ``weight_scale``, and transformers ``activation_scale``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hasten.checkpoints.json_values import are_integers
from hasten.checkpoints.quantized.module_tensors import (
    SCALE_DTYPES,
    ModuleTensors,
    check_dtype,
    check_scales,
    find_modules,
    is_matrix,
    name_format,
    refuse_faults,
    refuse_setting,
)
from hasten.checkpoints.shards import TensorEntry
from hasten.checkpoints.tensor_files import TensorFiles
from hasten.core.errors import CheckpointError, show
from hasten.layers.formats.quant_spec import ActivationSpec, QuantSpec
from hasten.layers.formats.stored_matrix import Fp8Rows, StoredMatrix

SCALES = ("weight_scale_inv", "weight_scale")
INPUT_SCALES = ("input_scale", "activation_scale")
EXPONENT_DTYPES = ("F8_E8M0", "U8")  # a byte e is the scale 2 ** (e - 127), and 255 is NaN
DEFAULT_BLOCK = (128, 128)  # of transformers, if the configuration has no weight_block_size
MAX_BLOCK = 2**31 - 1
NAN = 0x7F  # without the sign

Block = tuple[int, int]  # outputs, inputs
Granularity = Literal["tensor", "channel", "block"]


def read_fp8(settings: Mapping[str, Any], files: TensorFiles) -> dict[str, StoredMatrix]:
    """Return the matrices of an FP8 checkpoint by the name of the weight.

    Raises ``UnsupportedModel`` for other number formats, and ``CheckpointError`` that lists every faulty tensor.
    """
    refuse_setting(files, "FP8", "fmt", name_format(settings, "fmt", default="e4m3"), ("e4m3", "float8_e4m3fn"))
    refuse_setting(files, "FP8", "expert_dtype", name_format(settings, "expert_dtype", default="fp8"), ("fp8",))
    scheme = name_format(settings, "activation_scheme", default="dynamic")
    refuse_setting(files, "FP8", "activation_scheme", scheme, ("dynamic", "static"))
    block, faults = _read_block(settings, files), []
    matrices: dict[str, StoredMatrix] = {}
    for module, tensors in find_modules(files, ("weight", *SCALES, *INPUT_SCALES)).items():
        if len(tensors) == 1 and "weight" in tensors and not tensors["weight"].dtype.startswith("F8_"):
            continue  # a module that is not converted
        granularity, found = _check_tensors(module, tensors, block, static=scheme == "static")
        if found:
            faults += found
            continue
        name, parts = f"{module}.weight", tuple(f"{module}.{part}" for part in tensors)
        num_outputs, num_inputs = tensors["weight"].shape
        spec = QuantSpec(
            scheme="FP8",
            kind="float",
            bits=8,
            granularity=granularity,
            block=block if granularity == "block" else None,
            activations=_activations(granularity, block, static=scheme == "static"),
        )
        nbytes = sum(files.entries[part].nbytes for part in parts)
        matrices[name] = Fp8Matrix(name, parts, (num_outputs, num_inputs), spec, nbytes, files)
    refuse_faults(files, "FP8", faults)
    return matrices


@dataclass(frozen=True, slots=True)
class Fp8Matrix:
    """One matrix of an FP8 checkpoint. See ``StoredMatrix``."""

    name: str
    parts: tuple[str, ...]
    shape: tuple[int, int]
    spec: QuantSpec
    nbytes: int
    files: TensorFiles

    def input_order(self) -> Tensor | None:
        return None

    def rows(self, start: int, stop: int) -> Fp8Rows:
        self._check_input_scale()
        values = self.files.read(self.name)[start:stop].clone(memory_format=torch.contiguous_format)
        scales = self._scales(start, stop)
        rows = Fp8Rows(values, scales, min(self.spec.block[1] if self.spec.block else self.shape[1], self.shape[1]))
        magnitudes = values.view(torch.uint8) & NAN
        if (magnitudes == NAN).any():
            raise CheckpointError(f"{self.name} of {self.files.folder} holds NaN", remedy="Download the checkpoint again")
        if not scales.all():
            kept = (scales != 0).repeat_interleave(rows.block_size, dim=1)[:, : self.shape[1]]
            if magnitudes.masked_fill_(kept, 0).any():
                raise CheckpointError(
                    f"{self.name} of {self.files.folder} has a scale of 0 for weights that are not 0",
                    remedy="Download the checkpoint again",
                )
        return rows

    def _scales(self, start: int, stop: int) -> Tensor:
        """Return the scales of some outputs, float32 [O, C]."""
        (name,) = (part for part in self.parts if part.endswith(SCALES))
        stored = self.files.read(name)
        if stored.dtype == torch.uint8:
            stored = stored.view(torch.float8_e8m0fnu)
        if self.spec.granularity == "tensor":
            scales = stored.reshape(1, 1).to(torch.float32).repeat(stop - start, 1)
        elif self.spec.block is None:
            scales = stored.reshape(-1, 1)[start:stop].to(torch.float32)
        else:
            height = self.spec.block[0]
            first = start // height
            blocks = stored[first : -(-stop // height)].to(torch.float32)
            scales = blocks[torch.arange(start, stop, dtype=torch.int64, device=stored.device) // height - first]
        check_scales(scales, name, self.files)
        return scales.clone(memory_format=torch.contiguous_format)

    def _check_input_scale(self) -> None:
        for name in self.parts:
            if name.endswith(INPUT_SCALES):
                scale = float(self.files.read(name).to(torch.float32))
                if not 0 < scale < float("inf"):
                    raise CheckpointError(
                        f"the scale {name} of {self.files.folder} is no positive number",
                        got=scale,
                        remedy="Download the checkpoint again",
                    )


def _activations(granularity: Granularity, block: Block | None, *, static: bool) -> ActivationSpec:
    if static:
        return ActivationSpec("float", 8, dynamic=False, granularity="tensor")
    if granularity == "block" and block is not None:
        return ActivationSpec("float", 8, dynamic=True, granularity="group", group_size=block[1])
    return ActivationSpec("float", 8, dynamic=True)


def _read_block(settings: Mapping[str, Any], files: TensorFiles) -> Block | None:
    """Return the outputs and inputs of a block; None for one scale per matrix or output."""
    value = settings.get("weight_block_size", list(DEFAULT_BLOCK))
    if value is None:
        return None
    if not are_integers(value, 1, MAX_BLOCK) or len(value) != 2:
        raise CheckpointError(
            f"the quantization_config of {files.folder} has no valid weight_block_size",
            got=show(value),
            allowed="two positive integers, or null",
            remedy="Download the checkpoint again",
        )
    return value[0], value[1]


def _check_tensors(module: str, tensors: ModuleTensors, block: Block | None, *, static: bool) -> tuple[Granularity, list[str]]:
    """Return what shares a scale, and the faults of a module's tensors."""
    scales, input_scales = [part for part in SCALES if part in tensors], [part for part in INPUT_SCALES if part in tensors]
    faults = [] if "weight" in tensors else [f"{module}.weight is missing"]
    faults += [] if scales else [f"{module}.{SCALES[0]} is missing"]
    faults += [f"{module}.{INPUT_SCALES[0]} is missing"] if static and not input_scales else []
    faults += [f"{module} has both {' and '.join(names)}" for names in (scales, input_scales) if len(names) > 1]
    if faults:
        return "tensor", faults
    weight, scale = tensors["weight"], tensors[scales[0]]
    faults += check_dtype(f"{module}.weight", weight, ("F8_E4M3",))
    faults += check_dtype(f"{module}.{scales[0]}", scale, (*SCALE_DTYPES, *EXPONENT_DTYPES))
    for part in input_scales:
        faults += check_dtype(f"{module}.{part}", tensors[part], SCALE_DTYPES)
        faults += [] if _is_number(tensors[part]) else [f"{module}.{part} is {list(tensors[part].shape)}, expected one number"]
    if not is_matrix(weight):
        return "tensor", [*faults, f"{module}.weight is {list(weight.shape)}, expected a matrix"]
    granularity = _find_granularity(weight.shape, scale, block)
    if granularity is None:
        outputs, inputs = weight.shape
        grid = f"{[-(-outputs // block[0]), -(-inputs // block[1])]} for blocks of {block[0]} x {block[1]}, " if block else ""
        faults.append(f"{module}.{scales[0]} is {list(scale.shape)}, expected {grid}[] or {[outputs, 1]}")
    return granularity or "tensor", faults


def _find_granularity(shape: tuple[int, ...], scale: TensorEntry, block: Block | None) -> Granularity | None:
    """Return what shares a scale. The shape of a block comes from the configuration only."""
    if _is_number(scale):
        return "tensor"
    if scale.shape in ((shape[0],), (shape[0], 1)):
        return "channel"
    if block is not None and scale.shape == (-(-shape[0] // block[0]), -(-shape[1] // block[1])):
        return "block"
    return None


def _is_number(entry: TensorEntry) -> bool:
    return entry.shape in ((), (1,), (1, 1))
