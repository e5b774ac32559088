"""``CalibrationState``: the calibration text between two layers, saved so that a killed run continues.

Shape suffixes: B sequences · S tokens per sequence · E hidden size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hasten.compress.quantize.quantization_run import Steps
from hasten.compress.quantize.statistics import InputStatistics
from hasten.compress.work_folder import WorkFolder
from hasten.layers.decoder_layer import DecoderLayer
from hasten.layers.linear import Linear
from hasten.models.layer_stream import SEQUENCES, LayerStream
from hasten.ops.native_dtype import has_bf16_arithmetic
from hasten.training.resume import SavedState, damaged_state

SAVE_EVERY = 30.0  # seconds between saves


@dataclass(slots=True)
class CalibrationState:
    stream: LayerStream
    work: WorkFolder
    steps: Steps
    hidden_BSE: Tensor  # the inputs of the next layer
    next_layer: int
    _saved: float = field(default_factory=time.monotonic)

    @classmethod
    def load(cls, stream: LayerStream, ids_BS: Tensor, work: WorkFolder, steps: Steps) -> CalibrationState:
        """Return the saved state of a run, or that before the first layer.

        Raises ``CheckpointError`` for a damaged one.
        """
        state, num_layers = work.resume.load(), stream.spec.num_layers
        if state is None:
            parts = [stream.embed(ids_bS).to(_state_dtype(stream)) for ids_bS in torch.split(ids_BS, SEQUENCES)]
            return cls(stream, work, steps, torch.cat(parts), 0)
        layer, hidden_BSE = state.values.get("layer"), state.tensors.get("hidden")
        shape = (*ids_BS.shape, stream.spec.hidden_size)
        if not isinstance(layer, int) or not 0 <= layer <= num_layers or hidden_BSE is None or hidden_BSE.shape != shape:
            raise damaged_state(work.resume.folder, "the hidden states are not those of this run")
        steps.advance_to(layer * steps.total // num_layers)
        return cls(stream, work, steps, hidden_BSE, layer)

    def statistics(self, matrices: Mapping[str, str], *, with_hessian: bool) -> dict[str, InputStatistics]:
        """Return the statistics of the inputs of some matrices of the next layer, by their names in it.

        ``matrices`` gives the name of the weight that an error calls each matrix by. The layer runs as it is in the checkpoint.
        Raises ``CheckpointError`` for inputs that are not finite, and ``Stopped``.
        """
        layer = self.stream.layer(self.next_layer).to(_compute_dtype(self.stream))
        statistics: dict[str, InputStatistics] = {}
        for name in matrices:
            module = layer.get_submodule(name)
            assert isinstance(module, Linear), name
            statistics[name] = InputStatistics.empty(module.format.in_features, with_hessian=with_hessian)
            module.register_forward_pre_hook(_count_inputs(statistics[name]))
        for _ in self.stream.run(layer, self.next_layer, self.hidden_BSE):
            self.steps.tick()
        for name, weight in matrices.items():
            statistics[name].check(weight)
        return statistics

    def advance(self, layer: DecoderLayer) -> None:
        """Pass the text through the next layer, whose parts are written.

        ``layer`` is converted to another dtype. Saves the state now and then. Raises ``Stopped``.
        """
        if self.next_layer + 1 < self.stream.spec.num_layers:
            for rows, out_BSE in self.stream.run(layer.to(_compute_dtype(self.stream)), self.next_layer, self.hidden_BSE):
                self.hidden_BSE[rows] = out_BSE.to(self.hidden_BSE.dtype)
                self.steps.tick()
        self.next_layer += 1
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.work.resume.save(self.next_layer, SavedState({"hidden": self.hidden_BSE}, {"layer": self.next_layer}))
            self._saved = time.monotonic()


def _state_dtype(stream: LayerStream) -> torch.dtype:
    """Return the dtype of hidden states between layers.

    It is the model's, as when it runs; float16 might overflow.
    """
    return torch.bfloat16 if stream.plan.dtype == torch.bfloat16 else torch.float32


def _compute_dtype(stream: LayerStream) -> torch.dtype:
    """Return the dtype in which the calibration text passes through a layer.

    It is the model's where the hardware computes in it.
    """
    is_native = _state_dtype(stream) == torch.bfloat16 and has_bf16_arithmetic(torch.cpu.get_capabilities())
    return torch.bfloat16 if is_native else torch.float32


def _count_inputs(statistics: InputStatistics) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda module, inputs: statistics.add(inputs[0].float())
