"""``use_stored_formats``: the formats of the matrices that a checkpoint quantises."""

from __future__ import annotations

from collections.abc import Mapping

from hasten.layers.formats.base import StoredPart, WeightFormatFactory
from hasten.layers.formats.stored_matrix import StoredMatrix
from hasten.layers.linear import Embedding, Linear
from hasten.models.decoder import Decoder
from hasten.models.weights import WeightMap, WeightSource, find_format


def use_stored_formats(
    decoder: Decoder, sources: WeightMap, matrices: Mapping[str, StoredMatrix], factory: WeightFormatFactory
) -> None:
    """Replace the formats of ``decoder`` that hold a quantised matrix, or several, by ``factory.stored``.

    Modules that share a format, such as tied embeddings, share the new one. Raises ``CheckpointError``.
    """
    by_target: dict[str, list[WeightSource]] = {}
    for source in sources:
        by_target.setdefault(source.target, []).append(source)
    for target, parts in by_target.items():
        old = find_format(decoder, target)
        if old is None or not any(source.name in matrices for source in parts):
            continue
        rows = [range(old.out_features)[source.start : source.stop] for source in parts]
        new = factory.stored(
            old.in_features,
            old.out_features,
            [StoredPart(part.start, part.stop, matrices.get(source.name)) for part, source in zip(rows, parts, strict=True)],
        )
        for module in decoder.modules():
            if isinstance(module, (Linear, Embedding)) and module.format is old:
                module.format = new
