"""``hasten eval``: the quality of a model against a reference on a text, or its scores on a task."""

from __future__ import annotations

import json as encoder
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from hasten.cli.engine_options import SCORING_ENGINE, Debug, ModelArgument, ModelOption, model_name
from hasten.cli.options import OptionValues, with_options
from hasten.cli.task_options import TASK
from hasten.core.errors import InvalidOption
from hasten.quality.window import NUM_TOKENS, WINDOW


@with_options(TASK, SCORING_ENGINE)
def evaluate(
    name: ModelArgument = None,
    model: ModelOption = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="MODEL", help="The reference, in float32; on a text MODEL itself if left out."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text", metavar="FILE", help='The text: UTF-8, or .jsonl with a "text" per line; the shipped one if left out.'
        ),
    ] = None,
    token_ids: Annotated[
        Path | None,
        typer.Option("--token-ids", metavar="FILE", help="Token ids instead of a text, one sequence per line."),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option("--window", metavar="TOKENS", help=f"Score the text in windows of this many tokens; {WINDOW} if left out."),
    ] = None,
    num_tokens: Annotated[
        int | None,
        typer.Option(
            "--num-tokens",
            metavar="TOKENS",
            help=f"Maximum tokens to score, spread evenly over the text; {NUM_TOKENS:,} if left out.",
        ),
    ] = None,
    task: Annotated[
        Path | None,
        typer.Option("--task", metavar="FILE", help="Score a .jsonl file of exact-match and multiple-choice items, and no text."),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write the result as JSON; - is standard output, instead of the table."),
    ] = None,
    debug: Debug = False,
    *,
    task_options: OptionValues,
    engine: OptionValues,
) -> None:
    """Measure what options such as --dtype, or another checkpoint, cost in quality.

    On a text, the metrics are KL divergence, top-1 agreement and perplexity, against float32. With --task, they are the shares of
    correct items.
    """
    model = model_name(name, model)
    if json is not None and (json.is_dir() or not json.parent.is_dir()):
        raise InvalidOption(f"{json} cannot be written", remedy="Give a file in an existing folder")
    text_options = {"text": text, "token_ids": token_ids, "window": window, "num_tokens": num_tokens}
    given = {option: value for option, value in text_options.items() if value is not None}
    _check_options(task, given, task_options)
    options = {"show_progress": True, **engine}
    if task is None:
        _evaluate_text(model, options, against, given, json)
    else:
        _evaluate_task(model, options, against, task, task_options, json)


def _check_options(task: Path | None, text_options: Mapping[str, Any], task_options: Mapping[str, Any]) -> None:
    """Raise ``InvalidOption`` for options that a text has and a task has not, or the reverse."""
    wrong = [f"--{name.replace('_', '-')}" for name in (task_options if task is None else text_options)]
    if wrong and task is None:
        raise InvalidOption(f"{wrong[0]} needs --task", got=", ".join(wrong), remedy="Leave it out, or give --task")
    if wrong:
        raise InvalidOption(f"{wrong[0]} is for texts, and --task has none", got=", ".join(wrong), remedy="Leave it out")


def _evaluate_text(
    model: str, options: OptionValues, against: str | None, text_options: Mapping[str, Any], json: Path | None
) -> None:
    from hasten.cli.eval_report import show_quality
    from hasten.entrypoints.evaluation import evaluate as run

    evaluation = run(model, options, against=against, **text_options)
    _write(json, "quality", evaluation.as_dict())
    if str(json) != "-":
        show_quality(evaluation)


def _evaluate_task(
    model: str, options: OptionValues, against: str | None, task: Path, task_options: OptionValues, json: Path | None
) -> None:
    from hasten.cli.eval_report import show_task
    from hasten.entrypoints.task_evaluation import evaluate_task
    from hasten.entrypoints.task_options import TaskOptions

    evaluation = evaluate_task(model, options, task, against=against, settings=TaskOptions(**task_options))
    _write(json, "task", evaluation.as_dict())
    if str(json) != "-":
        show_task(evaluation)


def _write(file: Path | None, benchmark: str, result: Mapping[str, Any]) -> None:
    """Write one line of JSON with the provenance of the result, if a file is given."""
    if file is None:
        return
    from hasten.bench.provenance import provenance

    line = encoder.dumps({**provenance(benchmark), **result})
    if str(file) == "-":
        print(line)
        return
    try:
        file.write_text(line + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidOption(f"{file} cannot be written", got=error.strerror, remedy="Give another file") from None
