"""``hasten data``: data for distillation that a teacher makes, and the choice of the best."""

from __future__ import annotations

import typer

from hasten.cli.data_augment import augment
from hasten.cli.data_feedback import feedback
from hasten.cli.data_generate import generate
from hasten.cli.data_instruct import instruct
from hasten.cli.data_logits import logits
from hasten.cli.data_select import select

data = typer.Typer(
    help="Make data for a student: what a teacher writes and prefers, its probabilities, and the best examples.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
for command in (generate, augment, instruct, feedback, logits, select):
    data.command()(command)
