"""``hasten data instruct``: several answers with reasoning per prompt, of which the best is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.cli.data_run import (
    DATA_SAMPLING,
    PROMPTS_HELP,
    TEACHER_ENGINE,
    Chat,
    DataRun,
    Out,
    Teacher,
    TemplateFile,
    file_digest,
    merged_params,
)
from hasten.cli.engine_options import Debug
from hasten.cli.options import OptionValues, with_options
from hasten.cli.sampling_options import ParamsOption, PresetOption, read_params
from hasten.core.errors import InvalidOption

if TYPE_CHECKING:
    from hasten.compress.distill.data.instruct import Rule

SAMPLES = 8  # answers per prompt
CHECK_SECONDS = 86_400.0  # of all calls of a user's function

Prompts = Annotated[Path, typer.Option("--prompts", metavar="FILE", help=PROMPTS_HELP, show_default=False)]
AnswerPattern = Annotated[
    str | None,
    typer.Option(
        "--answer-pattern",
        metavar="REGEX",
        help='The final answer: group 1 of the last match, or all of it; what follows "Answer:" or the last line if left out.',
    ),
]
RuleName = Annotated[
    str | None,
    typer.Option("--rule", metavar="RULE", help="The best answer: majority (of final answers, the default) or logprob."),
]
CheckFile = Annotated[
    Path | None,
    typer.Option(
        "--check",
        metavar="FILE.py",
        help="The best answer is that with the highest check(input, output) of this file, which runs with your rights.",
    ),
]
MinScore = Annotated[
    float | None,
    typer.Option(
        "--min-score", help="Drop prompts whose best answer has less: a share of votes, a log-probability or the check's score."
    ),
]
AnswersOnly = Annotated[bool, typer.Option("--answers-only", help="The output is the final answer without the reasoning.")]


@with_options(DATA_SAMPLING, TEACHER_ENGINE)
def instruct(
    teacher: Teacher,
    prompts: Prompts,
    out: Out,
    rule: RuleName = None,
    check: CheckFile = None,
    answer_pattern: AnswerPattern = None,
    min_score: MinScore = None,
    answers_only: AnswersOnly = False,
    template: TemplateFile = None,
    chat: Chat = False,
    preset: PresetOption = None,
    params: ParamsOption = None,
    debug: Debug = False,
    *,
    sampling: OptionValues,
    engine: OptionValues,
) -> None:
    """Write the best of several answers with reasoning (--samples, 8 by default) per prompt.

    A run that was stopped or killed goes on when the command is given again.
    """
    from hasten.compress.distill.data.ask_templates import read_ask_templates
    from hasten.compress.distill.data.instruct import TRIAL, choose_answers
    from hasten.compress.distill.data.prompt_file import read_prompts
    from hasten.compress.distill.data.vote import read_pattern

    chosen = _chosen_rule(rule, check, teacher)
    records, pattern = read_prompts(prompts), read_pattern(answer_pattern)
    templates, from_file = read_ask_templates("instruct", TRIAL, template), {"n": SAMPLES, **read_params(params)}
    settings = {
        "command": "instruct",
        "teacher": teacher,
        "prompts": file_digest(prompts),
        "template": file_digest(template),
        "chat": chat,
        "sampling": {"preset": preset, **from_file, **sampling},
    }
    with (
        DataRun(out, settings, len(records)) as run,
        run.teacher(teacher, engine, chat=chat) as (llm, recorded),
        _open_check(check) as function,
    ):
        merged = merged_params(llm, preset, sampling, from_file)
        best = choose_answers(
            recorded,
            records,
            merged,
            templates,
            rule=chosen,
            pattern=pattern,
            check=function,
            min_score=min_score,
            answers_only=answers_only,
            seed=merged.seed or 0,
            dropped=run.dropped,
        )
        run.publish(best)


def _chosen_rule(rule: str | None, check: Path | None, teacher: str) -> Rule:
    """Return the rule that the options name. Raises ``InvalidOption``."""
    from hasten.compress.distill.data.endpoint_teacher import split_endpoint
    from hasten.compress.distill.data.instruct import read_rule

    if rule is not None and check is not None:
        raise InvalidOption("the best answer has one rule", got="--rule and --check", remedy="Leave one out")
    if rule == "logprob" and split_endpoint(teacher) is not None:
        raise InvalidOption("an endpoint gives no log-probabilities of texts", remedy="Choose --rule majority, or --check")
    return read_rule("check" if check is not None else rule or "majority")


@contextmanager
def _open_check(file: Path | None) -> Iterator[Callable[[str, str], float] | None]:
    """Yield the function ``check`` of a file, which runs in a process of its own; None without a file."""
    if file is None:
        yield None
        return
    from hasten.quality.function_process import FunctionFailed, FunctionProcess

    with closing(FunctionProcess(file, "check", total=CHECK_SECONDS)) as process:

        def check(input_text: str, output: str) -> float:
            try:
                return process.call(input_text, output)
            except FunctionFailed as error:
                raise FunctionFailed(
                    f"the function check of {file} failed, because {error.what}",
                    got=error.got,
                    allowed=error.allowed or "a finite number, or True or False",
                    remedy="Correct the function, which is called with input and output; the same command then goes on",
                ) from None

        yield check
