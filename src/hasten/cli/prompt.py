"""``hasten prompt``: templates, comparison of variants, optimisation, and feedback."""

from __future__ import annotations

import typer

from hasten.cli.prompt_compare import compare
from hasten.cli.prompt_feedback import feedback
from hasten.cli.prompt_optimize import optimize
from hasten.cli.prompt_templates import ls, show

prompt = typer.Typer(
    help="List and show prompt templates, compare and optimise them, and collect feedback.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
for command in (ls, show, compare, optimize):
    prompt.command()(command)
prompt.add_typer(feedback, name="feedback")
