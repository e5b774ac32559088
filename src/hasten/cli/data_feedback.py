"""``hasten data feedback``: a teacher's critique of outputs, and pairs of a better and a worse one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten.cli.data_run import (
    DEFAULT_MAX_TOKENS,
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
from hasten.cli.engine_options import MODEL_HELP, Debug
from hasten.cli.options import OptionValues, with_options
from hasten.core.errors import InvalidOption

if TYPE_CHECKING:
    from hasten.compress.distill.data.example_pairs import Candidates

Examples = Annotated[
    Path | None,
    typer.Option(
        "--examples",
        metavar="FILE",
        help='Outputs to judge: one {"input": ..., "output": ...} per line; lines of the same input are compared.',
    ),
]
Student = Annotated[
    str | None,
    typer.Option("--student", metavar="MODEL", help=f"Instead of examples: a model that answers --prompts first. {MODEL_HELP}"),
]
Prompts = Annotated[Path | None, typer.Option("--prompts", metavar="FILE", help=PROMPTS_HELP)]
Samples = Annotated[int, typer.Option("--samples", min=2, max=64, help="With --student: answers per prompt.")]
Pairwise = Annotated[
    bool,
    typer.Option("--pairwise", help="Compare each two outputs in both orders, instead of scoring each; keep verdicts that agree."),
]
Highest = Annotated[int, typer.Option("--highest-score", min=2, max=9, help="Scores are from 1 to this.")]
Margin = Annotated[float, typer.Option("--min-margin", min=0, help="Drop pairs whose scores differ by this or less.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Maximum tokens of a critique, and of a student's answer.")]


@with_options(TEACHER_ENGINE)
def feedback(
    teacher: Teacher,
    out: Out,
    examples: Examples = None,
    student: Student = None,
    prompts: Prompts = None,
    samples: Samples = 4,
    pairwise: Pairwise = False,
    highest_score: Highest = 5,
    min_margin: Margin = 0.0,
    max_tokens: MaxTokens = DEFAULT_MAX_TOKENS,
    template: TemplateFile = None,
    chat: Chat = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Random seed of a student's answers.")] = 0,
    debug: Debug = False,
    *,
    engine: OptionValues,
) -> None:
    """Write pairs of a better and a worse output by a teacher's critiques, for preference training.

    The engine options are those of both models. A run that was stopped or killed goes on when the command is given again.
    """
    from hasten.compress.distill.data.ask_templates import read_ask_templates
    from hasten.compress.distill.data.example_pairs import read_candidates
    from hasten.compress.distill.data.feedback import TRIAL, Feedback, compare_outputs, score_outputs
    from hasten.core.sampling_params import SamplingParams

    if (examples is None) == (student is None) or (student is None) != (prompts is None):
        raise InvalidOption("the outputs to judge are missing, or given twice", allowed="--examples, or --student and --prompts")
    answering = None if student is None or prompts is None else _Answering(student, prompts, samples, max_tokens, seed, chat)
    candidates = [] if examples is None else read_candidates(examples)
    templates = read_ask_templates("feedback", TRIAL, template)
    settings = {
        "command": "feedback",
        "teacher": teacher,
        "examples": file_digest(examples),
        "student": None if answering is None else answering.settings(),
        "pairwise": pairwise,
        "highest_score": highest_score,
        "max_tokens": max_tokens,
        "template": file_digest(template),
        "chat": chat,
    }
    with DataRun(out, settings, 0) as run:
        if answering is not None:
            candidates = answering.answers(run, engine)
        with run.teacher(teacher, engine, chat=chat) as (_, recorded):
            asking = Feedback(recorded, SamplingParams(temperature=0, seed=0, max_tokens=max_tokens), templates)
            if pairwise:
                run.publish(compare_outputs(asking, candidates, dropped=run.dropped))
            else:
                run.publish(score_outputs(asking, candidates, highest=highest_score, min_margin=min_margin, dropped=run.dropped))


@dataclass(frozen=True, slots=True)
class _Answering:
    """How a student answers the prompts."""

    model: str
    prompts: Path
    samples: int
    max_tokens: int
    seed: int
    chat: bool

    def settings(self) -> dict[str, Any]:
        return {"model": self.model, "prompts": file_digest(self.prompts), "samples": self.samples, "seed": self.seed}

    def answers(self, run: DataRun, engine: OptionValues) -> list[Candidates]:
        """Return the answers by prompt. The student is closed before the teacher is loaded."""
        from hasten.compress.distill.data.example_pairs import group_candidates
        from hasten.compress.distill.data.generate import generate_examples
        from hasten.compress.distill.data.prompt_file import read_prompts

        records = read_prompts(self.prompts)
        with run.teacher(self.model, engine, chat=self.chat) as (llm, recorded):
            params = merged_params(llm, None, {"n": self.samples, "max_tokens": self.max_tokens}, {})
            found = generate_examples(recorded, records, params, seed=self.seed, keep_cut=True, dropped=run.dropped)
            return group_candidates([(record["input"], [record["output"]]) for record in found])
