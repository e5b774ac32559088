"""Printing the results of ``hasten eval``: models on standard error, figures on standard output."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hasten.cli.report import megabytes, print_table

if TYPE_CHECKING:
    from hasten.entrypoints.evaluation import Evaluation
    from hasten.entrypoints.task_evaluation import TaskEvaluation
    from hasten.quality.intervals import Interval
    from hasten.quality.quality import Quality
    from hasten.quality.task_scores import Difference, Score


def show_quality(evaluation: Evaluation) -> None:
    """Print the quality on a text, and the sizes of both models."""
    quality, reference, candidate = evaluation.quality, evaluation.reference, evaluation.candidate
    _show_model("reference", reference)
    _show_model("candidate", candidate)
    plural = "" if quality.num_windows == 1 else "s"
    windows = f"{quality.num_windows:,} window{plural} of up to {evaluation.window:,}"
    print(f"{evaluation.text}: {quality.num_tokens:,} tokens in {windows}", file=sys.stderr)
    _show_divergence(quality)
    print()
    rows = [
        (
            "weights in files",
            megabytes(reference["file_bytes"]),
            megabytes(candidate["file_bytes"]),
            f"{evaluation.size_ratio:.3f}",
        ),
        ("bits per weight", f"{reference['bits_per_weight']:.2f}", f"{candidate['bits_per_weight']:.2f}", ""),
        ("weights in memory", megabytes(reference["weight_bytes"]), megabytes(candidate["weight_bytes"]), ""),
        (
            "perplexity",
            f"{quality.reference_perplexity:.4f}{_range(quality.reference_perplexity_interval, '.4f')}",
            f"{quality.candidate_perplexity:.4f}{_range(quality.candidate_perplexity_interval, '.4f')}",
            f"{quality.perplexity_ratio:.4f}{_range(quality.perplexity_ratio_interval, '.4f')}",
        ),
    ]
    if quality.reference_bits_per_byte is not None and quality.candidate_bits_per_byte is not None:
        rows.append(("bits per byte", f"{quality.reference_bits_per_byte:.4f}", f"{quality.candidate_bits_per_byte:.4f}", ""))
    print_table(("", "REFERENCE", "CANDIDATE", "RATIO"), rows)


def show_task(evaluation: TaskEvaluation) -> None:
    """Print the scores on a task, and the differences if there is a reference."""
    reference, candidate = evaluation.reference, evaluation.candidate
    if reference is not None:
        _show_model("reference", reference.description)
    _show_model("candidate", candidate.description)
    print(f"{evaluation.task}: {len(candidate.results):,} items", file=sys.stderr)
    if reference is None:
        print_table(("METRIC", "ITEMS", "SCORE (95 %)"), [_score_row(score) for score in candidate.scores])
        return
    rows = [
        (*_score_row(score), _score_row(other)[-1], *_difference_cells(difference))
        for score, other, difference in zip(reference.scores, candidate.scores, evaluation.differences, strict=True)
    ]
    columns = ("REFERENCE (95 %)", "CANDIDATE (95 %)", "DIFFERENCE (95 %)", "ONLY REFERENCE", "ONLY CANDIDATE")
    print_table(("METRIC", "ITEMS", *columns), rows)


def _show_model(side: str, about: Mapping[str, Any]) -> None:
    kv_cache = about.get("kv_cache_dtype") or about["dtype"]
    print(f"{side}: {about['model']}, weights {about['weights']}, KV cache {kv_cache}, {about['kernels']}", file=sys.stderr)


def _show_divergence(quality: Quality) -> None:
    # A single window has no standard error and no interval.
    kl_error = "" if quality.kl_standard_error is None else f"± {quality.kl_standard_error:.2g}"
    top1_error = "" if quality.top1_standard_error is None else f"± {quality.top1_standard_error * 100:.2g} points"
    kl_tail = f"median {quality.kl_median:.3g}, p99 {quality.kl_p99:.3g}, max {quality.kl_max:.3g}"
    rows = [
        ("mean KL, nats", f"{quality.kl_mean:.3g}", kl_error, _range(quality.kl_interval, ".3g").strip(" ()"), kl_tail),
        ("top-1 agreement", f"{quality.top1_agreement:.2%}", top1_error, "", ""),
    ]
    print_table(("", "VALUE", "STANDARD ERROR", "95 % INTERVAL", "DISTRIBUTION"), rows)


def _score_row(score: Score) -> tuple[str, str, str]:
    return score.metric, f"{score.num_items:,}", f"{score.share:.1%}{_range(score.interval, '.1%')}"


def _difference_cells(difference: Difference) -> tuple[str, str, str]:
    points = tuple(100 * value for value in difference.interval)
    shown = f"{100 * difference.difference:+.1f}{_range((points[0], points[1]), '+.1f')} points"
    return shown, f"{difference.only_reference:,}", f"{difference.only_candidate:,}"


def _range(interval: Interval | None, form: str) -> str:
    return "" if interval is None else f" ({interval[0]:{form}} to {interval[1]:{form}})"
