"""The ``hasten`` command: its subcommands, and how every error ends.

Whatever a user did wrong is one line on standard error and exit code 2; a traceback only with ``--debug``.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, TextIO

import typer

from hasten import __version__
from hasten.cli.bench import bench
from hasten.cli.chat import chat
from hasten.cli.doctor import doctor
from hasten.cli.eval import evaluate
from hasten.cli.generate import generate
from hasten.cli.ls import ls
from hasten.cli.pull import pull
from hasten.cli.rm import rm
from hasten.cli.train import train
from hasten.core.errors import HastenError, nearest

USER_ERROR = 2
FAULT = 1
INTERRUPTED = 130
SETTINGS = {"token_normalize_func": lambda name: name.replace("_", "-"), "help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="hasten",
    help="Run open-weight language models faster and cheaper, and see what each speed-up costs.",
    context_settings=SETTINGS,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (generate, chat, doctor, pull, ls, rm):
    app.command()(command)
app.command("eval")(evaluate)
app.add_typer(bench, name="bench")
app.add_typer(train, name="train")


@app.callback(invoke_without_command=True)
def hasten(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    """Run open-weight language models faster and cheaper, and see what each speed-up costs."""
    if version:
        print(f"hasten {__version__}")
        raise typer.Exit


def main() -> None:
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code; every error has been told by then."""
    debug = "--debug" in arguments
    with warnings.catch_warnings():
        warnings.showwarning = _tell_warning
        try:
            result = app(list(arguments), standalone_mode=False, prog_name="hasten")
        except HastenError as error:
            return _tell(str(error), debug)
        except typer.TyperException as error:
            return _tell(_usage(error), debug)
        except (KeyboardInterrupt, typer.Abort):
            return INTERRUPTED
        except BrokenPipeError:  # the reader of standard output left
            sys.stderr.close()
            return 0
        except Exception as error:
            _tell(f"{type(error).__name__}: {error}. This is a fault in hasten, not in what you did; --debug shows where.", debug)
            return FAULT
    return result if isinstance(result, int) else 0


def _tell(message: str, debug: bool) -> int:
    if debug:
        raise
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return USER_ERROR


def _usage(error: typer.TyperException) -> str:
    """The command line's own errors in the form of all others, with the nearest option or command."""
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    command = getattr(context, "command", None)
    if (wrong := getattr(error, "option_name", None)) and command is not None and message.startswith("No such option"):
        known = [name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]]
        return f"unknown option {wrong}. {nearest(wrong, known)}."
    if message.startswith("No such command") and command is not None:
        wrong = message.split("'")[1]
        return f"unknown command {wrong!r}. {nearest(wrong, command.commands)}."
    path = context.command_path if context is not None else "hasten"
    return f"{message}. See: {path} --help."


def _tell_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
) -> None:
    """hasten's own warnings in one line; those of libraries are for their developers."""
    if category.__module__.startswith("hasten."):
        print(f"warning: {message}", file=sys.stderr)
