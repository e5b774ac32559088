"""``merge_parts``: the files of a checkpoint whose layers were changed one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hasten.checkpoints.merge_shards import merge_shards
from hasten.checkpoints.side_files import copy_side_files
from hasten.compress.work_folder import WorkFolder
from hasten.models.layer_stream import LayerStream
from hasten.training.resume import write_errors

OTHERS = "others"  # prefix of the parts outside the layers


def merge_parts(stream: LayerStream, work: WorkFolder, layer_parts: Sequence[str]) -> Path:
    """Write the weights and side files of a checkpoint and return its folder, which lacks ``config.json``.

    ``layer_parts`` are the finished parts of the layers; all other tensors are those of the source. Raises ``CapacityError``.
    """
    names = list(layer_parts)
    for number, source in enumerate(stream.other_sources()):
        name = f"{OTHERS}-{number:03}"
        names.append(name)
        if not work.has(name):
            work.write(name, {source.name: stream.plan.checkpoint.read(source.name)})
    folder = work.new_result()
    with write_errors(folder):
        merge_shards(work.files(names), folder)
        copy_side_files(stream.folder, folder)
    return folder
