"""What is told about an answer: one line for people, one JSON object for programs."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from hasten.core.output import RequestMetrics, RequestOutput


def line(output: RequestOutput) -> str:
    """``prompt 12 tokens (8 cached, 4 computed) | answer 96 tokens | TTFT 0.021 s | 140.1 tokens/s | finish: length``."""
    metrics = output.metrics
    computed = metrics.num_prompt_tokens - metrics.num_cached_tokens
    parts = [
        f"prompt {metrics.num_prompt_tokens} tokens ({metrics.num_cached_tokens} cached, {computed} computed)",
        f"answer {metrics.num_output_tokens} tokens",
    ]
    if metrics.ttft is not None:
        parts.append(f"TTFT {metrics.ttft:.3f} s")
    if metrics.tokens_per_second is not None:
        parts.append(f"{metrics.tokens_per_second:.1f} tokens/s")
    if metrics.num_drafts:
        parts.append(drafts(metrics))
    if metrics.mean_exit_layer is not None:
        parts.append(f"{metrics.mean_exit_layer:.2f} layers a token by {metrics.exit_rule} (lossy)")
    reasons = dict.fromkeys(str(answer.finish_reason) for answer in output.outputs)
    return " | ".join([*parts, f"finish: {', '.join(reasons)}"])


def drafts(metrics: RequestMetrics) -> str:
    """``guesses 40 of 64 accepted, 3.1 tokens a step``."""
    length = 1 + metrics.num_accepted_tokens / metrics.num_drafts
    rule = "" if metrics.acceptance == "exact" else f" by {metrics.acceptance} acceptance"
    lossy = " (lossy)" if metrics.acceptance == "typical" else ""
    return (
        f"guesses {metrics.num_accepted_tokens} of {metrics.num_drafted_tokens} accepted{rule}{lossy}, {length:.1f} tokens a step"
    )


def total(outputs: list[RequestOutput], seconds: float) -> str:
    """The same for several requests that ran together."""
    metrics = [output.metrics for output in outputs]
    prompt, cached = sum(m.num_prompt_tokens for m in metrics), sum(m.num_cached_tokens for m in metrics)
    made = sum(m.num_output_tokens for m in metrics)
    return (
        f"{len(outputs)} prompts, {prompt} tokens ({cached} cached, {prompt - cached} computed) | answers {made} tokens | "
        f"{seconds:.2f} s | {made / seconds:.1f} tokens/s"
    )


def as_json(output: RequestOutput, model: str) -> str:
    """One line. Log-probabilities only where they were asked for."""
    metrics = output.metrics
    found: dict[str, Any] = {"model": model, **dataclasses.asdict(output)}
    found["metrics"] = {
        **dataclasses.asdict(metrics),
        "ttft": metrics.ttft,
        "tokens_per_second": metrics.tokens_per_second,
        "num_computed_prompt_tokens": metrics.num_prompt_tokens - metrics.num_cached_tokens,
    }
    return json.dumps(found, ensure_ascii=False)
