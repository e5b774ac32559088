"""``ExitRules``: checks and completes the exit rule of a request, by the model's trained exits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hasten.checkpoints.formats.exits import ExitsCheckpoint
from hasten.core.errors import InvalidRequest
from hasten.core.sampling_params import SamplingParams
from hasten.models.decoder import Decoder
from hasten.ops.torch.inference import inference

TOLERANCE = 0.01  # for requests with neither exit_threshold nor exit_tolerance


@dataclass(frozen=True, slots=True)
class ExitRules:
    decoder: Decoder
    checkpoint: ExitsCheckpoint | None  # None: no exits were trained

    def resolve(self, params: SamplingParams, prompt: Sequence[int]) -> tuple[SamplingParams, int | None]:
        """Return the params with the threshold of their rule, and the exit layer if all tokens have one.

        Raises ``InvalidRequest`` for rules that these exits do not support.
        """
        rule, checkpoint = params.exit_rule, self.checkpoint
        if rule == "none":
            return params, None
        if rule == "fixed":
            return params, self._checked_layer(params.exit_layer)
        if checkpoint is None:
            raise InvalidRequest(
                "this engine has no trained exits",
                got=f"exit_rule={rule!r}",
                allowed="none, fixed",
                remedy="Load the model with exits=..., or train some: hasten train exits",
            )
        tables = {"token_table": checkpoint.token_layers, "prompt_hash": checkpoint.prompt_hash_table}
        if rule in tables and tables[rule] is None:
            raise InvalidRequest("the exits of this engine have no table for this rule", got=f"exit_rule={rule!r}")
        if rule == "prompt_hash":
            assert checkpoint.prompt_hash_table is not None
            with inference():
                embedded_TE = self.decoder.embed(torch.tensor(prompt, dtype=torch.int64, device="cpu")).float()
            return params, checkpoint.prompt_hash_table.exit_layer(embedded_TE)
        if rule == "token_table" or params.exit_threshold is not None:
            return params, None
        return params.replace(exit_threshold=_calibrated_threshold(checkpoint, params), exit_tolerance=None), None

    def _checked_layer(self, layer: int | None) -> int:
        num_layers = self.decoder.spec.num_layers
        assert layer is not None
        if layer > num_layers:
            raise InvalidRequest("the model has fewer layers than that", got=f"exit_layer={layer}", allowed=f"1 to {num_layers}")
        return layer


def _calibrated_threshold(checkpoint: ExitsCheckpoint, params: SamplingParams) -> float:
    tolerance = TOLERANCE if params.exit_tolerance is None else params.exit_tolerance
    calibration = checkpoint.calibration(params.exit_rule, tolerance)
    if calibration is None:
        known = sorted(each.tolerance for each in checkpoint.calibrations if each.rule == params.exit_rule)
        raise InvalidRequest(
            f"the exits of this engine are not calibrated for this tolerance of {params.exit_rule}",
            got=f"exit_tolerance={tolerance:g}",
            allowed=", ".join(f"{value:g}" for value in known) or "none: they were never calibrated",
            remedy="Take one of these, or give an exit_threshold",
        )
    return calibration.threshold
