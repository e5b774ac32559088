"""Checkpoints that hasten's writers write: every matrix of a float model rounded to nearest, and what the matrices mean."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad

from hasten.checkpoints.merge_shards import merge_shards
from hasten.checkpoints.quantized.writers.find import find_writer
from hasten.compress.quantize.grid import Grid
from hasten.compress.quantize.rounding.rtn import Rtn
from hasten.layers.formats.quant_spec import ActivationSpec, QuantSpec
from hasten.layers.formats.stored_matrix import Fp8Rows, QuantizedRows

INT8_PER_TOKEN = ActivationSpec("int", 8, dynamic=True)
INT8_STATIC = ActivationSpec("int", 8, dynamic=False, granularity="tensor")
FP8_PER_TOKEN = ActivationSpec("float", 8, dynamic=True)
FP8_STATIC = ActivationSpec("float", 8, dynamic=False, granularity="tensor")
INPUT_SCALE = 0.05

SpecOf = Callable[[str], QuantSpec | None]  # of a module; None: it is ignored


def integers(scheme: str, bits: int, group_size: int | None = 32, activations: ActivationSpec | None = None) -> QuantSpec:
    """Return the scheme of symmetric integers; ``group_size`` None is one scale per output."""
    return QuantSpec(
        scheme=scheme,
        kind="int",
        bits=bits,
        granularity="channel" if group_size is None else "group",
        group_size=group_size,
        zero=1 << (bits - 1),
        activations=activations,
    )


def floats(scheme: str, shares: str | tuple[int, int], activations: ActivationSpec | None = None) -> QuantSpec:
    """Return a scheme of FP8 weights; ``shares`` is "tensor", "channel" or a block."""
    block = None if isinstance(shares, str) else shares
    granularity = "block" if block else shares
    return QuantSpec(scheme=scheme, kind="float", bits=8, granularity=granularity, block=block, activations=activations)  # type: ignore[arg-type]


def fp8_groups(size: int) -> ActivationSpec:
    return ActivationSpec("float", 8, dynamic=True, granularity="group", group_size=size)


@dataclass(slots=True)
class Written:
    """What a writer was given, by module."""

    folder: Path
    rows: dict[str, QuantizedRows] = field(default_factory=dict)
    specs: dict[str, QuantSpec] = field(default_factory=dict)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The float32 weights that the rows mean, by the name of the weight."""
        return {f"{module}.weight": rows.dequantize() for module, rows in self.rows.items()}


def write_checkpoint(folder: Path, source: Path, form: str, spec_of: SpecOf, *, dtype: torch.dtype = torch.float32) -> Written:
    """Quantise the linear layers of ``source`` and write them with the writer of ``form``, in two files per matrix."""
    writer, written, ignored, files = find_writer(form), Written(folder), [], []
    folder.mkdir(parents=True)
    for index, (name, tensor) in enumerate(_load(source).items()):
        module = name.removesuffix(".weight")
        spec = spec_of(module) if tensor.ndim == 2 and "embed" not in name else None
        stored = {name: tensor.to(dtype)}
        if spec is not None:
            assert not writer.find_faults(spec, {module: (tensor.shape[0], tensor.shape[1])})
            rows = round_to_nearest(tensor.to(dtype).float(), spec, writer.scale_dtype(dtype))
            is_static = spec.activations is not None and not spec.activations.dynamic
            stored = writer.tensors(module, rows, spec, dtype, INPUT_SCALE if is_static else None)
            written.rows[module], written.specs[module] = rows, spec
        elif tensor.ndim == 2:
            ignored.append(module)
        files.append(folder / f"{index}.part")
        save_file(stored, files[-1])
    merge_shards(files, folder)
    for file in files:
        file.unlink()
    for file in source.iterdir():
        if ".safetensors" not in file.name and file.name != "config.json":
            shutil.copyfile(file, folder / file.name)
    config = json.loads((source / "config.json").read_text())
    config |= {"dtype": str(dtype).removeprefix("torch."), "quantization_config": writer.settings(written.specs, ignored)}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return written


def round_to_nearest(weights_OI: Tensor, spec: QuantSpec, scale_dtype: torch.dtype) -> QuantizedRows:
    if spec.kind == "int":
        return Rtn().quantize(weights_OI, Grid(spec, scale_dtype), None, "a test")
    outputs, inputs = weights_OI.shape
    height, width = spec.block or ((1 if spec.granularity == "channel" else outputs), inputs)
    tiles = pad(weights_OI, (0, -inputs % width, 0, -outputs % height)).unflatten(1, (-1, width)).unflatten(0, (-1, height))
    scales = (tiles.abs().amax((1, 3)) / 448).to(scale_dtype).float().repeat_interleave(height, 0)[:outputs]
    per_weight = scales.repeat_interleave(width, 1)[:, :inputs]
    return Fp8Rows((weights_OI / per_weight).clamp(-448, 448).to(torch.float8_e4m3fn), scales, width)


def _load(source: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(source.glob("*.safetensors")) for name, tensor in load_file(file).items()}
