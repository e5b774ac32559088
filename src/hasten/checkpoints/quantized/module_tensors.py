"""The tensors of quantised modules, and the checks that the schemes share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hasten.checkpoints.json_values import is_integer
from hasten.checkpoints.shards import TensorEntry, count_faults, list_faults
from hasten.checkpoints.tensor_files import TensorFiles
from hasten.core.errors import CheckpointError, UnsupportedModel, show

ModuleTensors = dict[str, TensorEntry]  # of one module, by the last part of the name: "qweight"
SCALE_DTYPES = ("F16", "BF16", "F32")
MAX_GROUP_SIZE = 2**31 - 1


def find_modules(files: TensorFiles, parts: Sequence[str]) -> dict[str, ModuleTensors]:
    """Return the modules that have one of ``parts``, by name, with these tensors and ``weight``."""
    modules: dict[str, ModuleTensors] = {}
    for name, entry in files.entries.items():
        module, _, part = name.rpartition(".")
        if module and (part in parts or part == "weight"):
            modules.setdefault(module, {})[part] = entry
    return {module: tensors for module, tensors in modules.items() if any(part in tensors for part in parts)}


def find_missing(module: str, tensors: ModuleTensors, required: Sequence[str]) -> list[str]:
    """Return a fault for each part that a module lacks."""
    return [f"{module}.{part} is missing" for part in required if part not in tensors]


def check_part(name: str, entry: TensorEntry, shape: tuple[int, ...], dtypes: Sequence[str]) -> list[str]:
    """Return the faults of one tensor."""
    faults = [f"{name} is {list(entry.shape)}, expected {list(shape)}"] if entry.shape != shape else []
    return [*faults, *check_dtype(name, entry, dtypes)]


def check_dtype(name: str, entry: TensorEntry, dtypes: Sequence[str]) -> list[str]:
    return [f"{name} is {entry.dtype}, expected {' or '.join(dtypes)}"] if entry.dtype not in dtypes else []


def is_matrix(entry: TensorEntry) -> bool:
    return len(entry.shape) == 2 and all(entry.shape)


def refuse_faults(files: TensorFiles, scheme: str, faults: Sequence[str]) -> None:
    """Raise ``CheckpointError`` that lists the faults, if there are any."""
    if faults:
        raise CheckpointError(
            f"the tensors of {files.folder} are not those of {scheme} as its configuration says "
            f"({count_faults(faults)}): {list_faults(faults)}",
            remedy="Check that config.json belongs to these weights; if it does, download them again",
        )


def read_group_size(value: object, files: TensorFiles) -> int | None:
    """Return the number of inputs that share a scale.

    None is all inputs of an output, which a file writes as -1. Raises ``CheckpointError``.
    """
    if value == -1 and type(value) is int:
        return None
    if not is_integer(value, 1, MAX_GROUP_SIZE):
        raise CheckpointError(
            f"the quantization_config of {files.folder} has no valid group_size",
            got=show(value),
            allowed="-1 or a positive integer",
            remedy="Download the checkpoint again",
        )
    return value


def refuse_setting(files: TensorFiles, scheme: str, key: str, value: object, allowed: Sequence[Any]) -> None:
    """Raise ``UnsupportedModel`` for a value that is not one of ``allowed``."""
    if not any(value == known and type(value) is type(known) for known in allowed):
        raise UnsupportedModel(
            f"hasten does not read the {scheme} checkpoint {files.folder} with this {key}",
            got=show(value),
            allowed=", ".join(map(str, allowed)),
            remedy="Use a checkpoint of the same model in another format",
        )


def name_format(settings: Mapping[str, Any], *keys: str, default: str) -> object:
    """Return the first value under ``keys``, in lower case if it is a text."""
    value = next((settings[key] for key in keys if settings.get(key) is not None), default)
    return value.lower() if isinstance(value, str) else value


def check_scales(scales: Tensor, name: str, files: TensorFiles) -> None:
    """Raise ``CheckpointError`` for scales that are not finite, and for a tensor of zeros.

    ``scales`` are those of some outputs, and ``name`` is the tensor of all. Quantisers write a scale of 0 where the weights of a
    group are too small for float16, and every library reads zeros there. A matrix of such groups only comes from a file that was
    not written to its end.
    """
    if not torch.isfinite(scales).all():
        raise CheckpointError(f"the scales {name} of {files.folder} hold NaN or infinity", remedy="Download the checkpoint again")
    if not scales.any() and not files.read(name).to(torch.float32).any():
        raise CheckpointError(f"the scales {name} of {files.folder} are all 0", remedy="Download the checkpoint again")
