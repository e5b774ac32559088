"""``hasten data augment``: new examples that a teacher writes after the pattern of seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hasten.cli.data_run import (
    DATA_SAMPLING,
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

Seeds = Annotated[
    Path,
    typer.Option(
        "--seeds", metavar="FILE", help='Examples to follow: one {"input": ..., "output": ...} per line.', show_default=False
    ),
]
Count = Annotated[int, typer.Option("--count", min=1, help="Number of new examples.")]
Shots = Annotated[int, typer.Option("--shots", min=1, max=64, help="Seeds in a prompt, drawn anew for each new example.")]
Threshold = Annotated[
    float,
    typer.Option("--max-overlap", min=0.01, max=1, help="Drop a new input with this ROUGE-L or more to a seed or a new input."),
]


@with_options(DATA_SAMPLING.without(("n",)), TEACHER_ENGINE)
def augment(
    teacher: Teacher,
    seeds: Seeds,
    out: Out,
    count: Count = 1000,
    shots: Shots = 4,
    max_overlap: Threshold = 0.7,
    template: TemplateFile = None,
    chat: Chat = False,
    preset: PresetOption = None,
    params: ParamsOption = None,
    debug: Debug = False,
    *,
    sampling: OptionValues,
    engine: OptionValues,
) -> None:
    """Write new examples after the pattern of seeds: the teacher writes an input, and then its output.

    Near-copies are dropped. A run that was stopped or killed goes on when the command is given again.
    """
    from hasten.compress.distill.data.ask_templates import read_ask_templates
    from hasten.compress.distill.data.augment import TRIAL
    from hasten.compress.distill.data.augment import augment as new_examples
    from hasten.compress.distill.data.example_pairs import read_pairs

    pairs, templates, from_file = read_pairs(seeds), read_ask_templates("augment", TRIAL, template), read_params(params)
    settings = {
        "command": "augment",
        "teacher": teacher,
        "seeds": file_digest(seeds),
        "count": count,
        "shots": shots,
        "max_overlap": max_overlap,
        "template": file_digest(template),
        "chat": chat,
        "sampling": {"preset": preset, **from_file, **sampling},
    }
    with DataRun(out, settings, 2 * count) as run, run.teacher(teacher, engine, chat=chat) as (llm, recorded):
        merged = merged_params(llm, preset, sampling, from_file)
        records = new_examples(
            recorded,
            pairs,
            count,
            merged,
            templates,
            shots=shots,
            threshold=max_overlap,
            seed=merged.seed or 0,
            dropped=run.dropped,
        )
        run.publish(records)
