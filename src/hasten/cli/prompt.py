"""``hasten prompt``: templates, comparison of variants, and feedback on them."""

from __future__ import annotations

import typer

from hasten.cli.prompt_compare import compare
from hasten.cli.prompt_feedback import feedback
from hasten.cli.prompt_templates import ls, show

prompt = typer.Typer(
    help="List and show prompt templates, compare them, and collect feedback.", no_args_is_help=True, rich_markup_mode=None
)
for command in (ls, show, compare):
    prompt.command()(command)
prompt.add_typer(feedback, name="feedback")
