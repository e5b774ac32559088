"""``measure_speed``: tokens per second of one request, decoded greedily without drafts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hasten.core.errors import InvalidOption, show
from hasten.entrypoints.llm import LLM
from hasten.entrypoints.workload import Workload, measure


@dataclass(frozen=True, slots=True)
class DecodeSpeed:
    """``runs``: tokens per second of each measured run, of the output after its first token."""

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.runs)

    def as_dict(self) -> dict[str, float]:
        return {"median": self.median, "min": min(self.runs), "max": max(self.runs)}


def measure_speed(
    model: str, options: Mapping[str, Any], *, prompt_tokens: int = 64, num_tokens: int = 64, repeats: int = 3
) -> DecodeSpeed:
    """Return the speed of ``model`` at batch size 1, after a discarded run.

    ``options`` are fields of ``EngineOptions``; speculative decoding is off. The prompt is ``prompt_tokens`` random token ids, and
    ``num_tokens`` are decoded after it, through every end of sequence. Raises ``HastenError``.
    """
    if type(num_tokens) is not int or num_tokens < 2:
        raise InvalidOption("num_tokens is out of range", got=show(num_tokens), allowed="from 2: the first ends the prefill")
    workload = Workload(num_prompts=1, input_len=prompt_tokens, output_len=num_tokens)
    one_request = {"max_num_seqs": 1, "max_model_len": prompt_tokens + num_tokens}  # keeps the KV cache small
    with LLM(model, **{**one_request, **options, "speculative_method": "off"}) as llm:
        runs = measure(llm, workload, repeats=repeats)
    return DecodeSpeed(tuple(len(run.itl) / sum(run.itl) for run in runs))
