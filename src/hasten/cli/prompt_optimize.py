"""``hasten prompt optimize``: find a better prompt, and report its score on held-out items."""

from __future__ import annotations

import contextlib
import json as encoder
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.cli.engine_options import SINGLE_REQUEST_ENGINE, Debug, Json, load_llm
from hasten.cli.method_options import METHOD, read_method_options
from hasten.cli.options import OptionValues, with_options
from hasten.cli.prompt_compare import COMPARE_TASK, MetricName, Model, TaskFile
from hasten.cli.report import print_table
from hasten.core.errors import InvalidOption, printable, show

if TYPE_CHECKING:
    from hasten.prompts.load_variant import TemplateVariant
    from hasten.prompts.optimization_report import OptimizationReport, PromptFigures
    from hasten.prompts.optimize import Optimization
    from hasten.prompts.task import PromptTask

MethodName = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="METHOD",
        help="demonstrations, gcg, instructions, pez or soft_prompt; docs/how-to/optimize-a-prompt.md says which when.",
        show_default=False,
    ),
]
Out = Annotated[
    Path, typer.Option("--out", metavar="FOLDER", help="A new folder for the prompt and its report.", show_default=False)
]
InitialTemplate = Annotated[
    str | None,
    typer.Option("--template", metavar="FILE_OR_NAME", help="The initial prompt, a template; the input alone if left out."),
]
Fractions = Annotated[
    str, typer.Option("--fractions", metavar="NUMBER,NUMBER,NUMBER", help="Parts of train, validation and held-out items.")
]


@with_options(METHOD, COMPARE_TASK, SINGLE_REQUEST_ENGINE)
def optimize(
    model: Model,
    task: TaskFile,
    method: MethodName,
    out: Out,
    template: InitialTemplate = None,
    metric: MetricName = "exact_match",
    fractions: Fractions = "0.5,0.25,0.25",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the split and of the method.")] = 0,
    json: Json = False,
    debug: Debug = False,
    *,
    method_options: OptionValues,
    task_options: OptionValues,
    engine: OptionValues,
) -> None:
    """Find a better prompt for a task, and report its score on items that nothing was chosen by.

    A run that was stopped goes on where it was when the command is given again.
    """
    from hasten.entrypoints.progress import step_bar
    from hasten.entrypoints.task_options import TaskOptions
    from hasten.prompts.metric import open_metric
    from hasten.prompts.optimization_folder import OptimizationFolder
    from hasten.prompts.optimize import Optimization
    from hasten.prompts.optimize import optimize as run
    from hasten.prompts.task import read_prompt_task

    options, task_settings = read_method_options(method, method_options), TaskOptions(**task_options)
    items = read_prompt_task(task)
    with contextlib.ExitStack() as stack:
        wanted = Optimization(
            task=items,
            initial=_initial(template, items),
            method=method,
            options=options,
            metric=stack.enter_context(contextlib.closing(open_metric(metric))),
            task_options=task_settings,
            fractions=_fractions(fractions),
            seed=seed,
        )
        OptimizationFolder(out).prepare(wanted.settings())
        try:
            llm = stack.enter_context(load_llm(model, engine))
            with step_bar("optimising") as on_progress:
                report = run(llm, wanted, out, on_log=_log, on_progress=on_progress)
        except KeyboardInterrupt:
            _log("stopped; the same command goes on")
            raise
    if json:
        print(encoder.dumps(report.as_dict(), ensure_ascii=False, allow_nan=False))
    else:
        _show(report, wanted, model, out)


def _initial(template: str | None, task: PromptTask) -> TemplateVariant:
    from hasten.prompts.load_variant import load_variant
    from hasten.prompts.optimize import input_template

    return input_template(task.variables) if template is None else load_variant(template)


def _fractions(text: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        allowed = "three numbers of the sum 1, such as 0.5,0.25,0.25"
        raise InvalidOption("--fractions has the wrong form", got=show(text), allowed=allowed) from None


def _log(line: str) -> None:
    from tqdm.auto import tqdm

    tqdm.write(printable(line), file=sys.stderr)  # above the bars


def _show(report: OptimizationReport, wanted: Optimization, model: str, out: Path) -> None:
    summary = report.summary
    counts = f"{summary.num_train:,} train, {summary.num_validation:,} validation, {summary.num_held_out:,} held-out items"
    print(f"{counts}; {printable(summary.metric)}; {printable(summary.method)}", file=sys.stderr)
    columns = ("PROMPT", "VALIDATION (95 %)", "HELD-OUT (95 %)", "PROMPT TOKENS", "PROMPT SECONDS")
    print_table(columns, [_row("initial", report.initial), _row("best", report.best)])
    difference = f"{summary.difference:+.4g}{_range(summary.difference_interval, '+.4g')}"
    print(f"held-out difference: {difference}; {'it is real' if summary.is_real else 'no difference is shown'}")
    print(
        f"{summary.optimization_tokens:,} tokens for the optimisation, {summary.report_tokens:,} for this report", file=sys.stderr
    )
    if summary.num_earlier_reads:
        reads = "once" if summary.num_earlier_reads == 1 else f"{summary.num_earlier_reads:,} times"
        print(f"these held-out items were read {reads} before; choose among those runs by validation", file=sys.stderr)
    if not summary.is_changed:
        print("no better prompt was found; the initial one stands")
    print(_usage(summary.is_soft, wanted, model, out))


def _usage(is_soft: bool, wanted: Optimization, model: str, out: Path) -> str:
    """Return the command that generates as the metric did."""
    from hasten.prompts.optimization_folder import PROMPT, SOFT_PROMPT
    from hasten.prompts.template_file import read_templates

    options, prompt = wanted.task_options, str(out / PROMPT)
    variables = " ".join(f"--var {name}=..." for name in wanted.initial.template.variables)
    if options.chat:
        soft = f" after the soft prompt {shlex.quote(str(out / SOFT_PROMPT))}" if is_soft else ""
        shown = shlex.join(["hasten", "prompt", "show", read_templates(out / PROMPT)[0].name, "--templates", prompt])
        return printable(f"use it as a user's message{soft}: {shown} {variables}")
    words = ["hasten", "generate", model, "--template", prompt]
    words += ["--soft-prompt", str(out / SOFT_PROMPT)] if is_soft else []
    settings = f" --temperature 0 --max-tokens {options.max_tokens}" if wanted.metric.needs_output else ""
    return f"use it with: {printable(shlex.join(words))} {variables}{settings}"


def _row(name: str, figures: PromptFigures) -> tuple[str, ...]:
    return (
        name,
        f"{figures.validation:.4g}{_range(figures.validation_interval)}",
        f"{figures.held_out:.4g}{_range(figures.held_out_interval)}",
        f"{figures.prompt_tokens:.1f}",
        f"{figures.prompt_seconds:.4f}",
    )


def _range(interval: tuple[float, ...] | None, form: str = ".4g") -> str:
    return "" if interval is None else f" ({interval[0]:{form}} to {interval[1]:{form}})"
