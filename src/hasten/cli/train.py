"""``hasten train``: heads that guess ahead, draft models and early exits, trained beside a frozen model on the user's text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.cli.engine_options import Debug, ModelArgument, ModelOption, model_name
from hasten.cli.interrupt import Interrupt
from hasten.cli.options import OptionGroup, OptionValues, with_options
from hasten.cli.print_table import print_table
from hasten.training.draft_model.recipe import DraftModelRecipe
from hasten.training.eagle.recipe import EagleRecipe
from hasten.training.early_exit.recipe import EarlyExitRecipe
from hasten.training.medusa.recipe import MedusaRecipe
from hasten.training.options import DEFAULT_STEPS, TrainOptions

if TYPE_CHECKING:
    from hasten.training.base import Recipe
    from hasten.training.draft_score import DraftScore

INTERRUPTED = 130
TRAINING = OptionGroup(
    "training",
    "Training",
    TrainOptions,
    {
        "steps": f"Updates of the weights; {DEFAULT_STEPS} if left out.",
        "minutes": "Instead: as many steps as fit into about this time, settled by timing the first.",
        "batch": "Windows per step.",
        "seq_len": "Tokens of a window, read without a break.",
        "lr": "Peak learning rate; if left out, one that suits what is trained.",
        "validation_fraction": "Share of the text that is not trained on but measured on.",
        "patience": "Stop after this many readings of the held-out text, of 20 in all, that brought nothing.",
        "self_distill": "Train on this many texts that the model itself writes after beginnings cut from the data.",
        "seed": "Of the order of windows, of initial weights and of generated texts.",
        "threads": "Threads that compute; one per rows_are_finite core if left out.",
        "save_every": "Seconds between saves of the state that a killed run goes on from.",
    },
)

Data = Annotated[
    Path, typer.Option("--data", metavar="FILE", help='The text: UTF-8, or .jsonl with a "text" per line.', show_default=False)
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="A new folder for the result.", show_default=False)]


@dataclass(frozen=True, slots=True)
class Kind:
    """One sub-command: the dataclass whose fields are its options, with their help."""

    recipe: Callable[..., Recipe]
    about: str
    help: Mapping[str, str]
    depth: str  # what one row of its table of acceptance is


KINDS = {
    "medusa": Kind(
        MedusaRecipe,
        "Train MedusaRecipe heads: from the model's last hidden state, each guesses one token further.",
        {
            "heads": "How many tokens are guessed beyond the model's own next one.",
            "layers": "Residual layers of a head.",
            "lm_head": "Projection of the heads: model (the model's), copy (the same, and the file holds a copy, for vLLM) "
            "or own (one per head, trained).",
            "draft_vocab": "Guess among this many tokens, the most frequent of the text; if left out, 32,000 or all.",
        },
        "HEAD",
    ),
    "eagle": Kind(
        EagleRecipe,
        "Train an EAGLE-3 head: one layer on the model's hidden states, whose guesses follow from one another.",
        {
            "init_from": "Go on from this head, such as that of the model's base; if left out, from random weights.",
            "ttt_steps": "How many tokens are guessed, one after the other.",
            "draft_vocab": "Guess among this many tokens, the most frequent of the text; if left out, 32,000 or all.",
            "aux_layers": "Read the model's state after this layer, counted from 1: three in all. If left out, a low, a middle "
            "and a high one.",
            "intermediate": "Width of the head's feed-forward layer; the model's if left out.",
            "norm_before_residual": "Begin the residual with the normalised state.",
        },
        "GUESS",
    ),
    "draft": Kind(
        DraftModelRecipe,
        "Train a small model of the same family and vocabulary to say what the model would say.",
        {
            "init_from": "Go on from this model, such as a small one of the same family; if left out, from random weights.",
            "layers": "Layers of a model of random weights; 2 if left out.",
            "hidden": "Its hidden size, a multiple of the model's head size; that nearest to 128 if left out.",
            "draft_vocab": "When drafting, guess among so many tokens, the most frequent of the text; if left out, 32,000 or all.",
            "hard_label_weight": "Weight of the text itself in what is learned, 0 to 1; the rest is the model's own distribution.",
        },
        "DEPTH",
    ),
    "exits": Kind(
        EarlyExitRecipe,
        "Train early exits: places where a token may leave the model before its last layer, with tables and calibrated thresholds.",
        {
            "layers": "Leave after this many layers; may be given several times. If left out, five in the upper two thirds.",
            "draft_vocab": "Where first layers guess for the whole model: among this many tokens, the most frequent of the text; "
            "if left out, 32,000 or all.",
            "texts": "Held-out windows that thresholds are calibrated on and tables are checked on; 0: neither thresholds "
            "nor tables.",
        },
        "EXIT",
    ),
}

train = typer.Typer(
    help="Train heads, a draft model or early exits for faster decoding.", no_args_is_help=True, rich_markup_mode=None
)


def _command(kind: Kind) -> Callable[..., None]:
    group = OptionGroup("chosen", "What is trained", _source(kind), kind.help)

    @with_options(group, TRAINING)
    def command(
        data: Data,
        out: Out,
        name: ModelArgument = None,
        model: ModelOption = None,
        debug: Debug = False,
        *,
        chosen: OptionValues,
        training: OptionValues,
    ) -> None:
        _train(kind, model_name(name, model), data, out, chosen, training)

    command.__doc__ = f"{kind.about}\n\nA run that was killed goes on when the same command is given again."
    return command


def _source(kind: Kind) -> type:
    assert isinstance(kind.recipe, type)
    return kind.recipe


def _train(kind: Kind, model: str, data: Path, out: Path, chosen: OptionValues, training: OptionValues) -> None:
    recipe, options = kind.recipe(**chosen), TrainOptions(**training)
    from hasten.training.callback import display
    from hasten.training.train import train as run

    with Interrupt() as interrupt, display() as callback:
        outcome = run(model, data, out, recipe, options, callback=callback, stop=lambda: interrupt.requested)
        if outcome is None:
            callback.note("stopped; the same command goes on from here")
            raise typer.Exit(INTERRUPTED)
        callback.note(f"written to {out}; on {outcome.score.num_positions:,} held-out positions:")
    _show(kind, outcome.score)


def _show(kind: Kind, score: DraftScore) -> None:
    """Acceptance by position, and how often the true token was among the likeliest guesses; of exits agreement alone."""
    tops = [rank for rank in (1, 2, 4, 10) if score.accuracies and rank <= len(score.accuracies[0])]
    if score.exits:
        shares = [[f"{sum(exit_[:rank]):.1%}" for rank in tops] for exit_ in score.accuracies]
        titles = ("AGREES", *(f"IN TOP {rank}" for rank in tops[1:]))
        print_table((kind.depth, *titles), [(str(e), *row) for e, row in zip(score.exits, shares, strict=True)])
        return
    columns = (kind.depth, "ACCEPTED IF ALL BEFORE", *(f"TOP {rank}" for rank in tops))
    rows = [
        (str(depth), f"{accepted:.1%}", *(f"{sum(shares[:rank]):.1%}" for rank in tops))
        for depth, (accepted, shares) in enumerate(zip(score.acceptance, score.accuracies, strict=True), 1)
    ]
    print_table(columns, rows)
    print(f"{score.accepted_length:.2f} guesses accepted per chain on average")


for _name, _kind in KINDS.items():
    train.command(_name)(_command(_kind))
