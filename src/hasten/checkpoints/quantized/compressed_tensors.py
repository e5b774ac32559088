"""``read_compressed_tensors``: the quantised matrices of a compressed-tensors checkpoint.

::

    pack-quantized          weight_packed int32 [O, words], weight_scale, weight_shape, weight_zero_point, weight_g_idx
    int-quantized           weight int8 [O, I], weight_scale, weight_zero_point
    float-quantized         weight e4m3 [O, I], weight_scale
    mxfp8-quantized         weight e4m3 [O, I], weight_scale E8M0 [O, I / 32]
    mxfp4-pack-quantized    weight_packed uint8 [O, I / 2], weight_scale E8M0 [O, I / 32]
    nvfp4-pack-quantized    weight_packed uint8 [O, I / 2], weight_scale e4m3 [O, I / 16], weight_global_scale
    any, static inputs      input_scale or input_global_scale

A scale belongs to a tensor [1], an output [O, 1], a group of inputs [O, I / group] or a block [⌈O / bo⌉, ⌈I / bi⌉].
Files that versions 0.17 and 0.20 of the library wrote decode to its weights, bit for bit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from hasten.checkpoints.quantized.compressed_config import ModuleGroup, read_groups
from hasten.checkpoints.quantized.compressed_parts import WEIGHT_PARTS, ModuleParts
from hasten.checkpoints.quantized.module_targets import TargetMatcher
from hasten.checkpoints.shards import TensorEntry, count_faults, list_faults
from hasten.checkpoints.tensor_files import TensorFiles
from hasten.core.errors import CheckpointError
from hasten.layers.formats.stored_matrix import StoredMatrix

_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})")


def read_compressed_tensors(settings: Mapping[str, Any], files: TensorFiles) -> dict[str, StoredMatrix]:
    """Return the quantised matrices by the name of the weight.

    A module is quantised if it has a part of a quantised weight; then it must have all of them.
    Raises ``UnsupportedModel`` for an unknown format, and ``CheckpointError`` that lists missing parts, shapes and dtypes.
    """
    groups = read_groups(settings)
    if not groups:
        return {}
    matrices: dict[str, StoredMatrix] = {}
    faults: list[str] = []
    group_of, dense = _group_finder(groups), _packs_densely(settings.get("version"))
    for module in _quantized_modules(files.entries):
        group = group_of(module)
        if group is None:
            faults.append(f"{module} is quantised and no group of config_groups targets it")
            continue
        matrix = ModuleParts(files, module, group, dense).find_matrix(faults)
        if matrix is not None:
            matrices[matrix.name] = matrix
    if faults:
        raise CheckpointError(
            f"the quantised weights of {files.folder} are not those of its quantization_config "
            f"({count_faults(faults)}): {list_faults(faults)}",
            remedy="Check that config.json belongs to these weights; if it does, download or quantise them again",
        )
    return matrices


def _quantized_modules(entries: Mapping[str, TensorEntry]) -> list[str]:
    """Return the names of the modules that have a part of a quantised weight."""
    modules = set()
    for name, entry in entries.items():
        module, _, part = name.rpartition(".")
        if module and (part in WEIGHT_PARTS or (part == "weight" and entry.dtype in ("I8", "F8_E4M3"))):
            modules.add(module)
    return sorted(modules)


def _group_finder(groups: list[ModuleGroup]) -> Callable[[str], ModuleGroup | None]:
    """Return what finds the group of a module."""
    if len(groups) == 1:  # the tensors show which modules are in it
        return lambda module: groups[0]
    by_target = {target: group for group in groups for target in group.targets}
    matcher = TargetMatcher(tuple(by_target))
    return lambda module: by_target.get(matcher.find(module) or "")


def _packs_densely(version: object) -> bool:
    """Whether this version of the library continues codes of 3, 5, 6 and 7 bits in the next word."""
    numbers = _VERSION.match(version) if isinstance(version, str) else None
    return numbers is None or (int(numbers[1]), int(numbers[2])) >= (0, 18)
