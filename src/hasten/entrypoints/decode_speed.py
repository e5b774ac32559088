"""``measure_speed``: tokens per second of a batch that is decoded greedily without drafts."""

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
    """``runs``: tokens per second of each measured run, all requests together.

    The first token of each output does not count.
    """

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.runs)

    def as_dict(self) -> dict[str, float]:
        return {"median": self.median, "min": min(self.runs), "max": max(self.runs)}


def measure_speed(
    model: str, options: Mapping[str, Any], *, batch: int = 1, prompt_tokens: int = 64, num_tokens: int = 64, repeats: int = 3
) -> DecodeSpeed:
    """Return the speed of ``model`` with ``batch`` requests at a time, after a discarded run.

    ``options`` are fields of ``EngineOptions``; speculative decoding is off. A prompt is ``prompt_tokens`` random token ids, and
    ``num_tokens`` are decoded after it, through every end of sequence. Raises ``HastenError``.
    """
    if type(num_tokens) is not int or num_tokens < 2:
        raise InvalidOption("num_tokens is out of range", got=show(num_tokens), allowed="from 2: the first ends the prefill")
    workload = Workload(num_prompts=batch, input_len=prompt_tokens, output_len=num_tokens)
    small = {"max_num_seqs": batch, "max_model_len": prompt_tokens + num_tokens}  # keeps the KV cache small
    with LLM(model, **{**small, **options, "speculative_method": "off"}) as llm:
        runs = measure(llm, workload, repeats=repeats)
    return DecodeSpeed(tuple(batch * len(run.itl) / sum(run.itl) for run in runs))
