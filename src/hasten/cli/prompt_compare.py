"""``hasten prompt compare``: the scores of variants on a task, and which one is really better."""

from __future__ import annotations

import contextlib
import hashlib
import json as encoder
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten.cli.engine_options import MODEL_HELP, SINGLE_REQUEST_ENGINE, Debug, Json, load_llm
from hasten.cli.options import OptionValues, with_options
from hasten.cli.report import print_table
from hasten.cli.task_options import TASK
from hasten.core.cache_folder import cache_folder
from hasten.core.errors import InvalidOption, printable

if TYPE_CHECKING:
    from hasten.prompts.evaluation import Evaluation, ScoreDifference
    from hasten.prompts.tournament import Tournament
    from hasten.prompts.variant_comparison import VariantComparison

COMPARE_TASK = TASK.without(("ignore_case", "delimiter"))


Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
TaskFile = Annotated[
    Path, typer.Argument(metavar="TASK.jsonl", help='One {"input": ..., "output": ...} per line.', show_default=False)
]
VariantNames = Annotated[
    list[str],
    typer.Option("--variant", metavar="FILE_OR_NAME", help="A template. Give it once per variant.", show_default=False),
]
MetricName = Annotated[
    str,
    typer.Option(
        "--metric",
        metavar="METRIC",
        help="exact_match, exact_match:ignore_case, f1, log_likelihood, judge, judge:FILE, judge:[FILE,]MODEL@URL (an "
        "OpenAI-compatible endpoint) or python:FILE.py:FUNCTION "
        "(your own code, which runs with your rights).",
    ),
]
RunName = Annotated[
    Path | None,
    typer.Option(
        "--run",
        metavar="FILE",
        help="Keep results in this file, and go on with those that are there; a file in hasten's cache folder if left out.",
    ),
]


@with_options(COMPARE_TASK, SINGLE_REQUEST_ENGINE)
def compare(
    model: Model,
    task: TaskFile,
    variant: VariantNames,
    metric: MetricName = "exact_match",
    tournament: Annotated[
        bool, typer.Option("--tournament", help="Stop evaluating a variant when it is shown to be worse than another one.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which items a tournament takes first.")] = 0,
    run: RunName = None,
    json: Json = False,
    debug: Debug = False,
    *,
    task_options: OptionValues,
    engine: OptionValues,
) -> None:
    """Compare variants of a prompt on a task, on the same items.

    A run that was stopped goes on where it was when the command is given again.
    """
    from hasten.entrypoints.task_options import TaskOptions
    from hasten.prompts.load_variant import load_variant
    from hasten.prompts.metric import open_metric
    from hasten.prompts.run_file import RunFile
    from hasten.prompts.task import read_prompt_task
    from hasten.prompts.variant_comparison import VariantComparison, check_variants

    if tournament and len(variant) < 2:
        raise InvalidOption("a tournament needs two variants", got=f"{len(variant)}", remedy="Add a --variant")
    options = TaskOptions(**task_options)
    items = read_prompt_task(task).items
    variants = check_variants([load_variant(name) for name in variant], items)
    with contextlib.ExitStack() as stack:
        scorer = stack.enter_context(contextlib.closing(open_metric(metric)))
        kept = stack.enter_context(RunFile(_run_file(task) if run is None else run))
        llm = stack.enter_context(load_llm(model, engine))
        comparison = VariantComparison(llm, variants, items, scorer, options, kept)
        if tournament:
            _show_tournament(comparison.run_tournament(seed), comparison, json)
        else:
            _show_evaluations(comparison.evaluate_all(), comparison, json)


def _run_file(task: Path) -> Path:
    name = hashlib.sha256(str(task.resolve()).encode("utf-8", "surrogateescape")).hexdigest()
    return cache_folder() / "prompt-runs" / f"{name[:32]}.jsonl"


def _show_evaluations(evaluations: Sequence[Evaluation], comparison: VariantComparison, json: bool) -> None:
    from hasten.prompts.evaluation import compare_evaluations

    ranked = sorted(evaluations, key=lambda evaluation: -evaluation.mean)
    differences = compare_evaluations(evaluations) if len(evaluations) > 1 else []
    winner = ranked[0].variant if differences and all(one.is_real for one in differences) else None
    seconds = {one.variant: comparison.prompt_seconds(one.variant) for one in ranked}
    if json:
        rows = [{**one.as_dict(), "prompt_seconds": seconds[one.variant]} for one in ranked]
        _print_json(comparison, winner=winner, variants=rows, differences=[one.as_dict() for one in differences])
        return
    _show_setting(comparison)
    by_name = {one.second: one for one in differences}
    columns = ("VARIANT", "SCORE (95 %)", "BEST MINUS THIS (95 % TOGETHER)", "PROMPT TOKENS", "PROMPT SECONDS", "TOKENS IN ALL")
    rows_of_text = [
        (
            printable(one.variant),
            f"{one.mean:.4g}{_range(one.interval)}",
            _difference(by_name.get(one.variant)),
            f"{one.mean_prompt_tokens:.1f}",
            f"{seconds[one.variant]:.4f}",
            f"{one.num_tokens:,}",
        )
        for one in ranked
    ]
    print_table(columns, rows_of_text)
    print(*_conclusion(winner, [one.variant for one in ranked if one.variant not in by_name or not by_name[one.variant].is_real]))


def _show_tournament(found: Tournament, comparison: VariantComparison, json: bool) -> None:
    if json:
        _print_json(comparison, **found.as_dict())
        return
    _show_setting(comparison)
    rows = [
        (
            printable(one.variant),
            f"{one.num_items:,}",
            f"{one.mean:.4g}",
            "-" if one.beaten_by is None else f"worse than {printable(one.beaten_by)}",
            f"{one.num_tokens:,}",
        )
        for one in found.standings
    ]
    print_table(("VARIANT", "ITEMS", "SCORE", "SHOWN", "TOKENS"), rows)
    share = found.num_tokens / max(1, found.full_tokens)
    print(f"{found.num_tokens:,} tokens, {share:.0%} of those of all items for all variants; {found.test}", file=sys.stderr)
    print(*_conclusion(found.winner, [one.variant for one in found.standings if one.beaten_by is None]))


def _show_setting(comparison: VariantComparison) -> None:
    kept = f"; {comparison.num_kept:,} results were kept from before" if comparison.num_kept else ""
    print(f"{len(comparison.items):,} items, {printable(comparison.metric.name)}{kept}", file=sys.stderr)


def _conclusion(winner: str | None, near: Sequence[str]) -> Iterator[str]:
    if winner is not None:
        yield f"winner: {printable(winner)}"
    elif len(near) > 1:
        yield f"no difference shown between {', '.join(map(printable, near))}"


def _print_json(comparison: VariantComparison, **fields: Any) -> None:
    facts = {"model": comparison.llm.describe()["model"], "metric": comparison.metric.name, "num_items": len(comparison.items)}
    print(encoder.dumps({**facts, **fields}, ensure_ascii=False, allow_nan=False))


def _difference(found: ScoreDifference | None) -> str:
    return "-" if found is None else f"{found.difference:+.4g}{_range(found.interval, '+.4g')}"


def _range(interval: tuple[float, float] | None, form: str = ".4g") -> str:
    return "" if interval is None else f" ({interval[0]:{form}} to {interval[1]:{form}})"
