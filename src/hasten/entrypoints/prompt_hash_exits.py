"""``PromptHashExits``: the engine's side of exit rules; ``ExitRules`` is the caller's."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from hasten.checkpoints.formats.exits import ExitsCheckpoint
from hasten.core.request import Request
from hasten.entrypoints.exit_rules import TABLE_RULES
from hasten.entrypoints.model_info import CalibratedThreshold, ExitInfo
from hasten.models.decoder import Decoder
from hasten.ops.torch.inference import inference


@dataclass(frozen=True, slots=True)
class PromptHashExits:
    """Chooses the exit layer of prompts under the rule prompt_hash, which needs their embeddings."""

    decoder: Decoder
    checkpoint: ExitsCheckpoint | None  # None: no exits were trained

    def complete(self, request: Request) -> Request:
        """Return the request with its exit layer if its rule is prompt_hash, else the request."""
        if request.params.exit_rule != "prompt_hash" or self.checkpoint is None or self.checkpoint.prompt_hash_table is None:
            return request
        with inference():
            embedded_TE = self.decoder.embed(torch.tensor(request.prompt_token_ids, dtype=torch.int64, device="cpu")).float()
        return replace(request, exit_layer=self.checkpoint.prompt_hash_table.exit_layer(embedded_TE))


def exit_info(num_layers: int, checkpoint: ExitsCheckpoint | None) -> ExitInfo:
    """Return what requests may ask of these exits."""
    if checkpoint is None:
        return ExitInfo(num_layers=num_layers)
    tables = {"token_table": checkpoint.token_layers, "prompt_hash": checkpoint.prompt_hash_table}
    return ExitInfo(
        num_layers=num_layers,
        are_trained=True,
        table_rules=tuple(rule for rule in TABLE_RULES if tables[rule] is not None),
        calibrations=tuple(
            CalibratedThreshold(rule=each.rule, tolerance=each.tolerance, threshold=each.threshold)
            for each in checkpoint.calibrations
        ),
    )
