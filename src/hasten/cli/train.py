"""``hasten train``: train draft heads, draft models, exit heads and soft prompts on the user's text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.cli.engine_options import Debug, ModelArgument, ModelOption, model_name
from hasten.cli.interrupt import INTERRUPTED, Interrupt
from hasten.cli.options import OptionGroup, OptionValues, with_options
from hasten.cli.report import print_table
from hasten.training.options import DEFAULT_STEPS, TrainOptions
from hasten.training.recipes import DraftModelRecipe, EagleRecipe, EarlyExitRecipe, MedusaRecipe, Recipe, SoftPromptRecipe

if TYPE_CHECKING:
    from hasten.training.draft_score import DraftScore

TRAINING = OptionGroup(
    "training",
    "Training",
    TrainOptions,
    {
        "steps": f"Optimizer steps; {DEFAULT_STEPS} by default.",
        "minutes": "Instead of --steps: as many steps as fit into about this time.",
        "batch": "Sequences per batch.",
        "accumulate": "Batches per optimizer step, which count as one large batch.",
        "optimizer": "adamw, or muon: Muon for the matrices inside the layers, and AdamW for the rest.",
        "precision": "Of matrix products: float32, bfloat16, or auto, which is bfloat16 where the processor computes in it.",
        "seq_len": "Tokens per sequence.",
        "lr": "Peak learning rate; the default depends on what is trained.",
        "validation_fraction": "Part of the text that is kept for validation.",
        "patience": "Stop after this many evaluations, of 20 in all, without a lower validation loss.",
        "self_distill": "Train on this many documents that the model generates from prompts cut from the data.",
        "seed": "Seed of the order of sequences, the initial weights and the generated documents.",
        "threads": "Compute threads; one per usable core by default.",
        "save_every": "Seconds between saves of the state that a killed run resumes from.",
    },
)
DRAFT_VOCAB = "Draft from this many tokens, the most frequent ones of the text; by default 32,000 or all."

Data = Annotated[
    Path,
    typer.Option(
        "--data",
        metavar="FILE",
        help='The text: UTF-8, or .jsonl with a "text" per line; for soft-prompt, with "input" and "output" per line.',
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="A new folder for the result.", show_default=False)]


@dataclass(frozen=True, slots=True)
class Kind:
    """One sub-command. The fields of ``recipe`` are its options."""

    recipe: type[Recipe]
    summary: str
    help: Mapping[str, str]  # field name -> help text
    row_title: str | None  # of the result table's first column; None: no table


KINDS = {
    "medusa": Kind(
        MedusaRecipe,
        "Train Medusa heads: each reads the model's last hidden state and drafts one token further ahead.",
        {
            "heads": "Number of heads, which is the number of draft tokens.",
            "layers": "Residual layers per head.",
            "lm_head": "The heads' lm_head: model (the model's), copy (the same, and the file holds a copy, for vLLM) "
            "or own (one per head, trained).",
            "draft_vocab": DRAFT_VOCAB,
        },
        "HEAD",
    ),
    "eagle": Kind(
        EagleRecipe,
        "Train an EAGLE-3 head: one layer on the model's hidden states that drafts token after token.",
        {
            "init_from": "Initial head, such as one of the model's base; random weights by default.",
            "ttt_steps": "Steps of training-time test: draft tokens per chain.",
            "draft_vocab": DRAFT_VOCAB,
            "aux_layers": "Read the model's hidden state after this layer, counted from 1: three in all. By default a low, a "
            "middle and a high one.",
            "intermediate": "Width of the head's MLP; the model's by default.",
            "norm_before_residual": "Start the residual from the normalised hidden state.",
        },
        "DRAFT TOKEN",
    ),
    "draft": Kind(
        DraftModelRecipe,
        "Train a draft model: a small model of the same family and vocabulary that learns the model's distribution.",
        {
            "init_from": "Initial model, such as a small one of the same family; random weights by default.",
            "layers": "Layers of a model with random weights; 2 by default.",
            "hidden": "Hidden size of a model with random weights, a multiple of the model's head size; near 128 by default.",
            "draft_vocab": DRAFT_VOCAB,
            "hard_label_weight": "Weight of the text's tokens in the loss, 0 to 1; the rest is the model's distribution.",
        },
        "DRAFT TOKEN",
    ),
    "exits": Kind(
        EarlyExitRecipe,
        "Train exit heads, with which tokens skip the last layers of the model, and calibrate tables and thresholds.",
        {
            "layers": "Exit after this many layers. By default five exits in the upper two thirds.",
            "draft_vocab": "For self-speculation: draft from this many tokens, the most frequent ones of the text; by default "
            "32,000 or all.",
            "texts": "Validation sequences for the calibration of thresholds and tables; 0: no thresholds and no tables.",
        },
        "EXIT",
    ),
    "soft-prompt": Kind(
        SoftPromptRecipe,
        "Train a soft prompt: embeddings that stand before every input and make the frozen model answer as the examples do.",
        {
            "virtual_tokens": "Number of embeddings; each takes one position of the context.",
            "init_text": "Start from the embeddings of this text; by default from those of random tokens.",
        },
        None,
    ),
}

train = typer.Typer(
    help="Train heads, a draft model or early exits for faster decoding, a soft prompt, or a model by preferences and rewards.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _command(kind: Kind) -> Callable[..., None]:
    @with_options(OptionGroup("recipe", "Recipe", kind.recipe, kind.help), TRAINING)
    def command(
        data: Data,
        out: Out,
        name: ModelArgument = None,
        model: ModelOption = None,
        debug: Debug = False,
        *,
        recipe: OptionValues,
        training: OptionValues,
    ) -> None:
        _train(kind.row_title, model_name(name, model), data, out, kind.recipe(**recipe), TrainOptions(**training))

    command.__doc__ = f"{kind.summary}\n\nThe same command resumes a run that was killed."
    return command


def _train(row_title: str | None, model: str, data: Path, out: Path, recipe: Recipe, options: TrainOptions) -> None:
    from hasten.training.callback import console_callback
    from hasten.training.train import train as run

    with Interrupt() as interrupt, console_callback() as callback:
        result = run(model, data, out, recipe, options, callback=callback, should_stop=lambda: interrupt.requested)
        if result is None:
            callback.on_log("stopped; the same command resumes the training")
            raise typer.Exit(INTERRUPTED)
        score = result.score
        loss = f"loss {score.mean_loss:.3f} on {score.num_positions:,} validation positions"
        callback.on_log(f"written to {out}; {loss}{'' if row_title is None else ':'}")
    if row_title is not None:
        _print_score(row_title, score)


def _print_score(row_title: str, score: DraftScore) -> None:
    """Print the acceptance of each draft token, or the agreement of each exit, and top-k accuracies."""
    tops = [k for k in (1, 2, 4, 10) if score.accuracies and k <= len(score.accuracies[0])]
    in_top = [[f"{sum(ranks[:k]):.1%}" for k in tops] for ranks in score.accuracies]
    if score.exit_layers:
        titles = (row_title, "AGREES", *(f"IN TOP {k}" for k in tops[1:]))
        print_table(titles, [(str(layer), *row) for layer, row in zip(score.exit_layers, in_top, strict=True)])
        return
    titles = (row_title, "ACCEPTANCE", *(f"TOP {k}" for k in tops))
    rows = enumerate(zip(score.acceptance, in_top, strict=True), 1)
    print_table(titles, [(str(depth), f"{acceptance:.1%}", *row) for depth, (acceptance, row) in rows])
    print(f"{score.accepted_length:.2f} draft tokens accepted per chain on average")


for _name, _kind in KINDS.items():
    train.command(_name)(_command(_kind))
