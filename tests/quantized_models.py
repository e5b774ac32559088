"""Quantised copies of tiny checkpoints in a scheme of the tests, and the same weights in float32.

``register`` makes the scheme known to the reader. Its settings list the matrices; codes, scales and offsets are tensors.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hasten.checkpoints.quantized.find import SCHEMES
from hasten.checkpoints.tensor_files import TensorFiles
from hasten.layers.formats.quant_spec import ActivationSpec, QuantSpec
from hasten.layers.formats.stored_matrix import GroupedRows, StoredMatrix

METHOD = "tiny"
INT8_ACTIVATIONS = ActivationSpec("int", 8, dynamic=True)


@dataclass(frozen=True, slots=True)
class Scheme:
    """Integer codes, with a scale and an offset for each ``group_size`` inputs."""

    bits: int = 4
    group_size: int = 16
    reorder: int = 0  # of inputs: the seed of a permutation; 0: none
    int8_activations: bool = False

    @property
    def spec(self) -> QuantSpec:
        return QuantSpec(
            scheme="Tiny",
            kind="int",
            bits=self.bits,
            granularity="group",
            group_size=self.group_size,
            reorders_inputs=bool(self.reorder),
            activations=INT8_ACTIVATIONS if self.int8_activations else None,
        )


@dataclass(frozen=True, slots=True)
class TinyMatrix:
    """A matrix in files. ``weight`` is its name; the tensors are named after it."""

    name: str
    scheme: Scheme
    files: TensorFiles

    @property
    def parts(self) -> tuple[str, ...]:
        names = ("codes", "scales", "offsets", *(("order",) if self.scheme.reorder else ()))
        return tuple(f"{self.name}.{part}" for part in names)

    @property
    def shape(self) -> tuple[int, int]:
        out_features, in_features = self.files.entries[self.parts[0]].shape
        return out_features, in_features

    @property
    def spec(self) -> QuantSpec:
        return self.scheme.spec

    @property
    def nbytes(self) -> int:
        return sum(self.files.entries[part].nbytes for part in self.parts)

    def input_order(self) -> Tensor | None:
        return self.files.read(self.parts[3]) if self.scheme.reorder else None

    def rows(self, start: int, stop: int) -> GroupedRows:
        codes, scales, offsets = (self.files.read(part)[start:stop] for part in self.parts[:3])
        return GroupedRows(codes, scales, self.scheme.group_size, offsets_OG=offsets)


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the scheme known until the test ends."""
    monkeypatch.setitem(SCHEMES, METHOD, read_matrices)


def read_matrices(settings: Mapping[str, Any], files: TensorFiles) -> dict[str, StoredMatrix]:
    return {name: TinyMatrix(name, Scheme(**scheme), files) for name, scheme in settings["matrices"].items()}


def quantize(
    source: Path, folder: Path, scheme_of: Callable[[str], Scheme | None], *, transposed: bool = False, **config: object
) -> tuple[Path, Path]:
    """Write ``folder/quantised`` and ``folder/plain`` with the same weights; return both.

    ``scheme_of`` gets the name of each matrix; None leaves it alone. ``transposed``: ``source`` stores matrices as [in, out].
    ``config`` changes both configurations.
    """
    stored = load_file(source / "model.safetensors")
    quantized, plain, schemes = dict(stored), dict(stored), {}
    for name, tensor in stored.items():
        scheme = scheme_of(name) if tensor.ndim == 2 else None
        if scheme is None:
            continue
        schemes[name] = dataclasses.asdict(scheme)
        is_linear = transposed and ".wte." not in name and ".wpe." not in name and not name.startswith("lm_head")
        parts = encode(tensor.T if is_linear else tensor, scheme)
        del quantized[name]
        quantized |= {f"{name}.{part}": values for part, values in parts.items()}
        weights = decode(parts, scheme)
        plain[name] = weights.T.contiguous() if is_linear else weights
    values = {**json.loads((source / "config.json").read_text()), **config}
    settings = {"quantization_config": {"quant_method": METHOD, "matrices": schemes}}
    folders = folder / "quantised", folder / "plain"
    for target, tensors, extra in zip(folders, (quantized, plain), (settings, {}), strict=True):
        shutil.copytree(source, target)
        save_file(tensors, target / "model.safetensors", {"format": "pt"})
        (target / "config.json").write_text(json.dumps(values | extra))
    return folders


def encode(weights: Tensor, scheme: Scheme) -> dict[str, Tensor]:
    """Quantise [O, I] to the codes 0 to 2**bits - 1, from the smallest weight of a group to its largest.

    A product of a scale, rounded to bfloat16, and a code is exact. So rounding once, as native kernels do, is rounding twice.
    """
    order = torch.arange(weights.shape[1])
    if scheme.reorder:
        order = torch.randperm(weights.shape[1], generator=torch.Generator().manual_seed(scheme.reorder))
    groups = weights.float()[:, order].unflatten(1, (-1, scheme.group_size))
    low, high = groups.amin(-1), groups.amax(-1)
    scales = ((high - low) / (2**scheme.bits - 1)).bfloat16().float()
    codes = ((groups - low[..., None]) / scales[..., None]).round().clamp(0, 2**scheme.bits - 1).flatten(1).to(torch.uint8)
    parts = {"codes": codes, "scales": scales, "offsets": low}
    return parts | ({"order": order} if scheme.reorder else {})


def decode(parts: Mapping[str, Tensor], scheme: Scheme) -> Tensor:
    """The weights by their formula, one group after the other: scale * code + offset, in float32."""
    weights = torch.empty(parts["codes"].shape)
    order = parts.get("order", torch.arange(weights.shape[1]))
    for group in range(weights.shape[1] // scheme.group_size):
        columns = slice(group * scheme.group_size, (group + 1) * scheme.group_size)
        codes = parts["codes"][:, columns].float()
        weights[:, order[columns]] = codes * parts["scales"][:, group, None] + parts["offsets"][:, group, None]
    return weights
