"""``hasten prompt``: the commands about prompts."""

from __future__ import annotations

import typer

from hasten.cli.prompt_templates import ls, show

prompt = typer.Typer(help="List and show prompt templates.", no_args_is_help=True, rich_markup_mode=None)
for command in (ls, show):
    prompt.command()(command)
