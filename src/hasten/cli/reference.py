"""The command line reference as Markdown, generated from the commands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

INTRO = """\
# Command line

Generated from the commands by `make docs`; do not edit.

Outputs, listings and reports go to standard output, everything else to standard error. `_` and `-` are equal in option names.
Exit codes: 0 success, 1 a failed request or a bug in hasten, 2 a mistake in the command, or a file or stream that cannot be read or
written (one line explains it), 130 stopped with Ctrl-C. `--debug` shows the traceback of an error.
"""


def cli_reference() -> str:
    from hasten.cli.main import app

    root = typer.main.get_command(app)
    return "\n".join([INTRO, *_sections("hasten", root), *_presets()])


def _sections(path: str, command: Any) -> Iterator[str]:
    subcommands = getattr(command, "commands", None)
    if subcommands is None:
        yield from _section(path, command)
        return
    for name, subcommand in subcommands.items():
        yield from _sections(f"{path} {name}", subcommand)


def _section(path: str, command: Any) -> Iterator[str]:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    words = "".join(f" [{argument.metavar}]" + ("..." if argument.nargs == -1 else "") for argument in arguments)
    yield f"## `{path}`\n\n{command.help}\n\n```text\n{path}{words} [OPTIONS]\n```\n"
    yield "| | |\n| --- | --- |"
    for argument in arguments:
        yield f"| `{argument.metavar}` | {_cell(argument.help)} |"
    panel = None
    for option in (parameter for parameter in command.params if parameter.param_type_name == "option"):
        if option.rich_help_panel != panel:
            panel = option.rich_help_panel
            yield f"| **{panel}** | |"
        names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
        value = f" `{option.metavar}`" if option.metavar else ""
        yield f"| {names}{_cell(value)} | {_cell(option.help)}{_default(option)} |"
    yield ""


def _default(option: Any) -> str:
    """Return the default of an option. Options of an ``OptionGroup`` state theirs in the help text."""
    return "" if option.default in (None, False, ()) or option.rich_help_panel else f" [default: {option.default}]"


def _presets() -> Iterator[str]:
    from hasten.sampling.presets import PRESETS

    yield "## Presets\n\n| `--preset` | settings | why |\n| --- | --- | --- |"
    for name, preset in PRESETS.items():
        settings = ", ".join(f"{field} {value}" for field, value in preset.settings.items())
        yield f"| `{name}` | {settings} | {_cell(preset.reason)} |"
    yield ""


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("\n", " ")
