"""``load_stored_layer``: a decoder layer with the weights that its quantised part means."""

from __future__ import annotations

from pathlib import Path

from hasten.checkpoints.quantized.find import find_matrices
from hasten.checkpoints.quantized.writers.base import FormatWriter
from hasten.checkpoints.reader import Checkpoint
from hasten.checkpoints.shards import read_header
from hasten.checkpoints.tensor_files import SafetensorsFiles
from hasten.compress.quantize.plan import LayerPlan, ignored_modules, specs_by_module
from hasten.compress.quantize.recipe import Recipe
from hasten.layers.decoder_layer import DecoderLayer
from hasten.models.layer_stream import LayerStream


def load_stored_layer(stream: LayerStream, plan: LayerPlan, file: Path, recipe: Recipe, writer: FormatWriter) -> DecoderLayer:
    """Return the layer of a part, dequantised to float32, as a reader of the new checkpoint would get it."""
    entries = {entry.name: entry for entry in read_header(file)}
    settings = writer.settings(specs_by_module([plan], {plan.index: recipe}), ignored_modules([plan]))
    config = {**stream.plan.checkpoint.config, "quantization_config": settings}
    files = SafetensorsFiles(file.parent, entries)
    matrices = find_matrices(config, files)
    parts = {part for matrix in matrices.values() for part in matrix.parts}
    tensors = {name: entry for name, entry in entries.items() if name not in parts}
    checkpoint = Checkpoint(file.parent, config, {}, files, tensors, matrices)
    return stream.layer(plan.index, checkpoint)


def layer_bytes(file: Path) -> int:
    """Return the bytes of the tensors of a part."""
    return sum(entry.nbytes for entry in read_header(file))
