"""``hasten prompt``: compare variants of a prompt, and collect feedback on them."""

from __future__ import annotations

import typer

from hasten.cli.prompt_compare import compare
from hasten.cli.prompt_feedback import feedback

prompt = typer.Typer(help="Compare prompts and collect feedback.", no_args_is_help=True, rich_markup_mode=None)
prompt.command()(compare)
prompt.add_typer(feedback, name="feedback")
