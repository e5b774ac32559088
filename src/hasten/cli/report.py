"""Printing results: a summary line or a JSON object of finished requests, and aligned tables."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from hasten.core.output import RequestMetrics, RequestOutput
from hasten.core.sampling_params import SamplingParams


def request_summary(output: RequestOutput) -> str:
    """Return one line with the token counts, the TTFT, the rate, the finish reason and what is incomplete.

    ``prompt 12 tokens (8 cached, 4 computed) | output 96 tokens | TTFT 0.021 s | 140.1 tokens/s | finish: length``
    """
    metrics = output.metrics
    cached = f" ({metrics.num_cached_tokens} cached, {_num_computed(metrics)} computed)"
    parts = [
        f"prompt {metrics.num_prompt_tokens} tokens{'' if metrics.from_result_cache else cached}",
        f"output {metrics.num_output_tokens} tokens{' from the result cache' if metrics.from_result_cache else ''}",
    ]
    if metrics.ttft is not None:
        parts.append(f"TTFT {metrics.ttft:.3f} s")
    if metrics.tokens_per_second is not None:
        parts.append(f"{metrics.tokens_per_second:.1f} tokens/s")
    if metrics.num_drafts:
        parts.append(_speculation_summary(metrics))
    if metrics.mean_exit_layer is not None:
        parts.append(f"{metrics.mean_exit_layer:.2f} layers per token by {metrics.exit_rule} (lossy)")
    reasons = dict.fromkeys(str(completion.finish_reason) for completion in output.outputs)
    return " | ".join([*parts, f"finish: {', '.join(reasons)}"]) + _incomplete([output])


def _incomplete(outputs: Sequence[RequestOutput]) -> str:
    """Return how many outputs ended before they had the form of ``structured_outputs``; empty if none did."""
    completions = [completion for output in outputs for completion in output.outputs]
    num_incomplete = sum(completion.is_complete is False for completion in completions)
    if not num_incomplete:
        return ""
    return " | incomplete" if len(completions) == 1 else f" | {num_incomplete} of {len(completions)} outputs incomplete"


def _num_computed(metrics: RequestMetrics) -> int:
    """Return how many tokens of the prompt were computed."""
    return 0 if metrics.from_result_cache else metrics.num_prompt_tokens - metrics.num_cached_tokens


def _speculation_summary(metrics: RequestMetrics) -> str:
    tokens_per_step = 1 + metrics.num_accepted_tokens / metrics.num_drafts
    rule = "" if metrics.acceptance == "exact" else f" by {metrics.acceptance} acceptance"
    lossy = " (lossy)" if metrics.acceptance == "typical" else ""
    accepted = f"{metrics.num_accepted_tokens} of {metrics.num_drafted_tokens} draft tokens accepted"
    return f"{accepted}{rule}{lossy}, {tokens_per_step:.1f} tokens per step"


def batch_summary(outputs: list[RequestOutput], seconds: float, advice: str | None = None) -> str:
    """Return the same figures summed over requests that ran together.

    ``advice`` follows in a line of its own.
    """
    metrics = [output.metrics for output in outputs]
    prompt_tokens, cached = sum(m.num_prompt_tokens for m in metrics), sum(m.num_cached_tokens for m in metrics)
    computed, output_tokens = sum(_num_computed(m) for m in metrics), sum(m.num_output_tokens for m in metrics)
    num_found = sum(m.from_result_cache for m in metrics)
    found = f" | {num_found} from the result cache" if num_found else ""
    return (
        f"{len(outputs)} prompts, {prompt_tokens} tokens ({cached} cached, {computed} computed){found} | "
        f"output {output_tokens} tokens | {seconds:.2f} s | {output_tokens / seconds:.1f} tokens/s{_incomplete(outputs)}"
    ) + ("" if advice is None else f"\nadvice: {advice}")


def as_json(output: RequestOutput, model: str, params: SamplingParams) -> str:
    """Return one line of JSON: the output and those settings of the request that are not the default.

    Log-probabilities are included only if the request asked for them.
    """
    metrics = output.metrics
    content: dict[str, Any] = {"model": model, "params": changed_settings(params), **dataclasses.asdict(output)}
    content["metrics"] |= {
        "ttft": metrics.ttft,
        "tokens_per_second": metrics.tokens_per_second,
        "num_computed_prompt_tokens": _num_computed(metrics),
    }
    return json.dumps(content, ensure_ascii=False)


def changed_settings(params: SamplingParams) -> dict[str, Any]:
    """Return the settings that differ from the defaults, as plain data."""
    defaults, values = SamplingParams(), dataclasses.asdict(params)
    return {name: value for name, value in values.items() if getattr(params, name) != getattr(defaults, name)}


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print an aligned plain-text table. Rows are never truncated in a pipe."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True, header_style="bold")
    for row in rows:
        table.add_row(*row)
    # A pipe has no width, and the default of 80 columns would cut long names.
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 10_000)
    console.print(table, markup=False)


def megabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
