"""``hasten distill``: train a smaller student on what its teacher says, and measure what it kept."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.cli.compressed import NumTokens, Out, Text, check_texts, measure_result
from hasten.cli.engine_options import Debug
from hasten.cli.interrupt import INTERRUPTED, Interrupt
from hasten.cli.options import OptionGroup, OptionValues, with_options
from hasten.cli.train import TRAINING
from hasten.core.errors import InvalidOption, show
from hasten.quality.window import NUM_TOKENS
from hasten.training.distill.recipe import DistillRecipe
from hasten.training.names import DEVICES
from hasten.training.options import TrainOptions

if TYPE_CHECKING:
    from hasten.compress.distill.student import StudentSource

RECIPE = OptionGroup(
    "recipe",
    "Recipe",
    DistillRecipe,
    {
        "loss": "sft (the text alone), forward-kl, reverse-kl, js, skew-kl or skew-reverse-kl.",
        "temperature": "Divides the logits of both models in the divergence.",
        "beta": "Of js: 0 is forward-kl, 1 is reverse-kl.",
        "alpha": "Of the skew losses: the share of the other distribution.",
        "hard_label_weight": "Weight of the text's tokens in the loss, 0 to 1; the rest is the divergence.",
        "hidden_weight": "Weight of the distance of the layers' hidden states, beside the rest of the loss.",
        "on_policy": "Share of batches whose outputs the student itself generates (GKD).",
    },
)

Teacher = Annotated[str, typer.Argument(metavar="TEACHER", help="Folder or hub id of the teacher.", show_default=False)]
Student = Annotated[
    str | None,
    typer.Option(
        "--student", metavar="NAME", help="Start from this checkpoint: a smaller model, a pruned one, or the teacher itself."
    ),
]
StudentConfigFile = Annotated[
    Path | None, typer.Option("--student-config", metavar="FILE", help="Start from random weights of this config.json.")
]
StudentLayers = Annotated[
    str | None,
    typer.Option(
        "--student-layers",
        metavar="LAYERS",
        help="Start from layers of the teacher: their numbers from 0, such as 0,2,5; every-2; or uniform-4, four evenly spaced.",
    ),
]
StudentSize = Annotated[
    str | None,
    typer.Option(
        "--student-size",
        metavar="SIZE",
        help="Start from random weights in the teacher's proportions, such as layers=4,hidden=128.",
    ),
]
Data = Annotated[
    Path,
    typer.Option(
        "--data",
        metavar="FILE",
        help='The text: UTF-8, or .jsonl with a "text" per line, or with "input" and "output", of which the outputs count.',
        show_default=False,
    ),
]
Replay = Annotated[
    Path | None,
    typer.Option("--replay", metavar="FILE", help="Text that a share of the batches repeats, so that less is forgotten."),
]
ReplayShare = Annotated[
    float | None, typer.Option("--replay-share", metavar="SHARE", help="Share of batches with --replay text; 0.1 if left out.")
]
Outside = Annotated[
    Path | None,
    typer.Option(
        "--outside", metavar="FILE", help="Text outside the data, on which forgetting is measured; the shipped one if left out."
    ),
]
TeacherCache = Annotated[
    Path | None,
    typer.Option("--teacher-cache", metavar="DIR", help="Outputs of the teacher for the data, which hasten data logits wrote."),
]
Device = Annotated[str, typer.Option("--device", metavar="|".join(DEVICES), help="Where to train; auto: on a GPU if there is one.")]


@with_options(RECIPE, TRAINING)
def distill(
    teacher: Teacher,
    data: Data,
    out: Out,
    student: Student = None,
    student_config: StudentConfigFile = None,
    student_layers: StudentLayers = None,
    student_size: StudentSize = None,
    replay: Replay = None,
    replay_share: ReplayShare = None,
    outside: Outside = None,
    teacher_cache: TeacherCache = None,
    device: Device = "auto",
    text: Text = None,
    num_tokens: NumTokens = NUM_TOKENS,
    debug: Debug = False,
    *,
    recipe: OptionValues,
    training: OptionValues,
) -> None:
    """Train a smaller model, the student, to be like its teacher.

    One of --student, --student-config, --student-layers and --student-size says what it starts from. The result is a checkpoint
    that transformers and vLLM load. It is measured against the teacher. The same command resumes a run that was killed.
    """
    source = _student_source(student, student_config, student_layers, student_size)
    chosen, options = DistillRecipe(**recipe), TrainOptions(**training)
    check_texts(text, num_tokens)
    if replay is None and replay_share is not None:
        raise InvalidOption("--replay-share has no effect without --replay", got=replay_share, remedy="Give a text with --replay")

    from hasten.compress.distill.run import distill as run
    from hasten.training.callback import console_callback

    with Interrupt() as interrupt, console_callback() as callback:
        result = run(
            teacher,
            source,
            data,
            out,
            chosen,
            options,
            replay=replay,
            **({} if replay_share is None else {"replay_share": replay_share}),
            outside=outside,
            cache=teacher_cache,
            device=device,
            callback=callback,
            should_stop=lambda: interrupt.requested,
        )
        if result is None:
            callback.on_log("stopped; the same command resumes the training")
            raise typer.Exit(INTERRUPTED)
        callback.on_log(f"written to {out} in {result.seconds:.0f} s")
    if interrupt.requested:  # while the files were put together
        print("stopped before it was measured", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    measure_result(result, text, num_tokens, options.threads, titles=("TEACHER", "STUDENT"), rows=result.rows())


def _student_source(name: str | None, config: Path | None, layers: str | None, size: str | None) -> StudentSource:
    """Return the student that one of four options names. Raises ``InvalidOption``."""
    flags = {"--student": name, "--student-config": config, "--student-layers": layers, "--student-size": size}
    given = [flag for flag, value in flags.items() if value is not None]
    if len(given) != 1:
        raise InvalidOption(
            "one option says what the student is", got=", ".join(given) or "none", allowed="one of " + ", ".join(flags)
        )
    from hasten.compress.distill.student import SmallerModel, StudentCheckpoint, StudentConfig, TeacherLayers

    if name is not None:
        return StudentCheckpoint(name)
    if config is not None:
        return StudentConfig(config)
    if layers is not None:
        return TeacherLayers(layers)
    sizes: dict[str, int] = {}
    for part in (size or "").split(","):
        key, _, value = part.partition("=")
        if key.strip() not in ("layers", "hidden") or key.strip() in sizes or not value.strip().isdecimal() or len(value) > 9:
            sizes = {}
            break
        sizes[key.strip()] = int(value)
    if "layers" not in sizes:
        raise InvalidOption("--student-size has the wrong form", got=show(size), allowed="layers=N, or layers=N,hidden=N")
    return SmallerModel(**sizes)
