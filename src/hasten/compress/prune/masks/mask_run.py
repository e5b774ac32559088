"""``MaskRun``: the matrices of all layers pruned, one layer in memory at a time.

The inputs of a layer come from the pruned layers before it. Matrices that engines join, such as those of queries, keys and values,
are pruned as one: of the methods here, only SparseGPT compares the rows of a matrix. A killed run continues after the last layer
whose state is saved.

Shape suffixes: B sequences · S tokens per sequence.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.compress.prune import masks
from hasten.compress.prune.masks.base import MaskMethod
from hasten.compress.prune.masks.pattern import GROUP, Pattern
from hasten.compress.quantize.calibration_state import CalibrationState
from hasten.compress.quantize.quantization_run import Steps, part_name
from hasten.compress.quantize.statistics import InputStatistics
from hasten.compress.work_folder import WorkFolder
from hasten.core.errors import CheckpointError, InvalidOption
from hasten.layers.decoder_layer import DecoderLayer
from hasten.models.layer_stream import SEQUENCES, LayerStream
from hasten.models.weights import WeightSource

_SUFFIX = ".format.weight"  # of the targets that are matrices
MAX_LISTED = 20  # matrices that a message names


def mask_method(name: str) -> MaskMethod:
    """Return the method of ``PruneOptions.method``, one of MASKS."""
    method: MaskMethod = importlib.import_module(f"{masks.__name__}.{name}").METHOD()
    return method


def check_pattern(stream: LayerStream, pattern: Pattern) -> None:
    """Raise ``InvalidOption`` that names the matrices whose inputs the pattern does not divide."""
    sizes: dict[str, int] = {}
    for index in range(stream.spec.num_layers):
        for source in itertools.chain.from_iterable(matrix_sources(stream, index).values()):
            sizes[source.name] = stream.plan.checkpoint.tensors[source.name].shape[0 if source.transposed else 1]
    faults = [f"{name} ({size})" for name, size in sizes.items() if size % GROUP]
    if pattern.is_2_4 and faults:
        more = f"; and {len(faults) - MAX_LISTED} more" if len(faults) > MAX_LISTED else ""
        raise InvalidOption(
            f"the pattern 2:4 needs a multiple of {GROUP} inputs: {'; '.join(faults[:MAX_LISTED])}{more}",
            remedy="Use the pattern free",
        )


def matrix_sources(stream: LayerStream, index: int) -> dict[str, list[WeightSource]]:
    """Return the sources of each matrix of a layer, by its name in the layer."""
    matrices: dict[str, list[WeightSource]] = {}
    for source in stream.layer_sources(index):
        if source.target.endswith(_SUFFIX):
            matrices.setdefault(source.target.removesuffix(_SUFFIX), []).append(source)
    return matrices


@dataclass(frozen=True, slots=True)
class MaskRun:
    stream: LayerStream
    method: MaskMethod
    pattern: Pattern
    ids_BS: Tensor | None  # calibration text; None: the method needs none
    work: WorkFolder
    steps: Steps

    @staticmethod
    def num_steps(stream: LayerStream, ids_BS: Tensor | None) -> int:
        """Return the steps of a run: two passes of the text through each layer, and the matrices."""
        chunks = 0 if ids_BS is None else -(-len(ids_BS) // SEQUENCES)
        return stream.spec.num_layers * (2 * chunks + 4)

    def prune_layers(self) -> list[str]:
        """Prune every layer and return the names of the parts.

        Continues a run that was stopped. Raises ``Stopped``.
        """
        state = None
        if self.ids_BS is not None:
            state = CalibrationState.load(self.stream, self.ids_BS, self.work, self.steps)
        num_layers = self.stream.spec.num_layers
        for index in range(0 if state is None else state.next_layer, num_layers):
            if state is not None or not self.work.has(part_name(index)):
                self._prune_layer(index, state)
            self.steps.finish(index + 1, num_layers)
        return [part_name(index) for index in range(num_layers)]

    def count_zeros(self, parts: Sequence[str]) -> tuple[int, int]:
        """Return how many weights of the layers' matrices are zero, and how many there are."""
        zeros = total = 0
        for index, part in enumerate(parts):
            tensors = self.work.resume.read(part) or {}
            names = {source.name for sources in matrix_sources(self.stream, index).values() for source in sources}
            for name in names & tensors.keys():
                zeros += tensors[name].numel() - int(tensors[name].count_nonzero())
                total += tensors[name].numel()
        return zeros, total

    def _prune_layer(self, index: int, state: CalibrationState | None) -> None:
        """Write the part of a layer, and pass the text through it. Nothing of the layer stays in memory."""
        matrices = matrix_sources(self.stream, index)
        statistics: dict[str, InputStatistics] = {}
        if state is not None:
            weights = {name: sources[0].name for name, sources in matrices.items()}
            statistics = state.statistics(weights, with_hessian=self.method.needs_hessian)
        layer = self.stream.layer(index)
        tensors: dict[str, Tensor] = {}
        for name, sources in matrices.items():
            tensors |= self._prune_matrix(layer, name, sources, statistics.get(name))
            self.steps.tick()
        others = [source for source in self.stream.layer_sources(index) if not source.target.endswith(_SUFFIX)]
        tensors |= {source.name: self.stream.plan.checkpoint.read(source.name) for source in others}
        self.work.write(part_name(index), tensors)
        if state is not None:
            state.advance(layer)

    @torch.no_grad()
    def _prune_matrix(
        self, layer: DecoderLayer, name: str, sources: Sequence[WeightSource], statistics: InputStatistics | None
    ) -> dict[str, Tensor]:
        """Prune a matrix in the layer, and return it as the checkpoint stores it."""
        weights_OI = layer.get_parameter(f"{name}{_SUFFIX}")
        weights_OI.copy_(self.method.prune(weights_OI.detach(), self.pattern, statistics, sources[0].name))
        tensors: dict[str, Tensor] = {}
        for source in sources:
            rows = source.rows(layer)
            dtype = self.stream.plan.checkpoint.read(source.name).dtype
            stored = rows.to(dtype)
            if not bool(stored.isfinite().all()):
                raise CheckpointError(
                    f"pruning makes {source.name} too large for {str(dtype).removeprefix('torch.')}",
                    remedy="Choose the method wanda, or cast the model to bfloat16 first",
                )
            rows.copy_(stored)  # what the next layers see is what is written
            tensors[source.name] = (stored.T if source.transposed else stored).contiguous()
        return tensors
