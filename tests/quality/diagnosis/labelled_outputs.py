"""The labelled outputs of ``outputs.json`` as the detectors see them.

Each line has a fault or none, who made it (the demo model, or a person by hand) and a half: thresholds were chosen on the
development half, before the sealed half was measured. Labels and texts are older than the detectors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hasten.core.result import TokenLogprob
from hasten.core.sampling_params import SamplingParams
from hasten.quality.diagnosis.diagnose import diagnose, diagnose_prompts
from hasten.quality.diagnosis.finding import Finding
from hasten.quality.diagnosis.observed import ObservedOutput

OUTPUTS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "outputs.json").read_text(encoding="utf-8"))


def findings(row: dict[str, Any]) -> list[Finding]:
    if "prompts" in row:
        order = diagnose_prompts(row["prompts"])
        return [] if order is None else [order]
    return list(diagnose(observed(row)))


def observed(row: dict[str, Any]) -> ObservedOutput:
    return ObservedOutput(
        text=row["text"],
        prompt=row["prompt"],
        token_ids=tuple(row.get("token_ids", ())),
        logprobs=[logprob(*pair) for pair in zip(row.get("token_ids", ()), row.get("logprobs", ()), strict=False)],
        finish_reason=row["finish_reason"],
        params=SamplingParams.from_dict(row["params"]),
    )


def logprob(token_id: int, numbers: list[float]) -> TokenLogprob:
    """Return a token's log-probability and those of the top tokens, whose ids are not stored."""
    ids = [-1 - rank for rank in range(len(numbers) - 1)]
    if numbers[0] in numbers[1:]:
        ids[numbers[1:].index(numbers[0])] = token_id
    return TokenLogprob(token_id, numbers[0], 1, tuple(zip(ids, numbers[1:], strict=True)))
