"""``CalibrationState``: the calibration text between two layers, saved so that a killed run continues.

Shape suffixes: B sequences · S tokens per sequence · E hidden size.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hasten.compress.quantize.plan import LayerPlan
from hasten.compress.quantize.quantization_run import QuantizationRun
from hasten.compress.quantize.quantize_layer import gather_statistics, run_layer
from hasten.compress.quantize.statistics import InputStatistics
from hasten.layers.decoder_layer import DecoderLayer
from hasten.models.layer_stream import SEQUENCES
from hasten.training.resume import SavedState, damaged_state

SAVE_EVERY = 30.0  # seconds between saves


@dataclass(slots=True)
class CalibrationState:
    hidden_BSE: Tensor  # the inputs of the next layer
    next_layer: int
    _saved: float = field(default_factory=time.monotonic)

    @classmethod
    def load(cls, run: QuantizationRun) -> CalibrationState:
        """Return the saved state of the run, or that before the first layer.

        Raises ``CheckpointError`` for a damaged one.
        """
        assert run.ids_BS is not None
        state = run.work.resume.load()
        if state is None:
            parts = [run.stream.embed(ids_bS).to(run.state_dtype) for ids_bS in torch.split(run.ids_BS, SEQUENCES)]
            return cls(torch.cat(parts), 0)
        layer, hidden_BSE = state.values.get("layer"), state.tensors.get("hidden")
        shape = (*run.ids_BS.shape, run.stream.spec.hidden_size)
        if not isinstance(layer, int) or not 0 <= layer <= len(run.plans) or hidden_BSE is None or hidden_BSE.shape != shape:
            raise damaged_state(run.work.resume.folder, "the hidden states are not those of this run")
        run.steps.advance_to(layer * run.steps.total // len(run.plans))
        return cls(hidden_BSE, layer)

    def statistics(self, run: QuantizationRun, plan: LayerPlan, *, with_hessian: bool) -> dict[str, InputStatistics]:
        """Return the statistics of the matrices of the next layer. Raises ``Stopped``."""
        return gather_statistics(run.stream, plan, self.hidden_BSE, run.compute_dtype, run.steps.tick, with_hessian=with_hessian)

    def advance(self, run: QuantizationRun, layer: DecoderLayer) -> None:
        """Pass the text through the next layer, and save the state now and then.

        The parts of the layer are written already. Raises ``Stopped``.
        """
        if self.next_layer + 1 < len(run.plans):
            run_layer(run.stream, layer, self.next_layer, self.hidden_BSE, run.compute_dtype, run.steps.tick)
        self.next_layer += 1
        if time.monotonic() - self._saved > SAVE_EVERY:
            run.work.resume.save(self.next_layer, SavedState({"hidden": self.hidden_BSE}, {"layer": self.next_layer}))
            self._saved = time.monotonic()
