"""The ``hasten`` command: its subcommands and its error handling.

A user's mistake is one line on standard error and exit code 2, and so is a file or a stream that the system refuses. A bug in
hasten is one line and exit code 1. A traceback appears only with ``--debug``.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, TextIO

import typer

from hasten import __version__
from hasten.cli.bench import bench
from hasten.cli.cache import cache
from hasten.cli.chat import chat
from hasten.cli.data import data
from hasten.cli.diagnose import diagnose
from hasten.cli.distill import distill
from hasten.cli.doctor import doctor
from hasten.cli.eval import evaluate
from hasten.cli.explain import explain
from hasten.cli.generate import generate
from hasten.cli.interrupt import INTERRUPTED
from hasten.cli.kv import kv
from hasten.cli.models import ls, pull, rm
from hasten.cli.presets import presets
from hasten.cli.prompt import prompt
from hasten.cli.prune import prune
from hasten.cli.quantize import quantize
from hasten.cli.serve import serve
from hasten.cli.streams import end_output, prepare_streams
from hasten.cli.top import top
from hasten.cli.train import train
from hasten.cli.train_preference import dpo, grpo, reward_model
from hasten.core.errors import MAX_MESSAGE, HastenError, clip, nearest, printable
from hasten.core.renamed import RENAMED_FLAGS, remedy_for_unknown

USER_ERROR = 2
INTERNAL_ERROR = 1
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
for command in (generate, chat, serve, top, presets, diagnose, doctor, explain, pull, ls, rm, quantize, prune, distill):
    app.command()(command)
app.command("eval")(evaluate)
app.add_typer(bench, name="bench")
for command in (dpo, reward_model, grpo):
    train.command()(command)
app.add_typer(train, name="train")
app.add_typer(kv, name="kv")
app.add_typer(cache, name="cache")
app.add_typer(prompt, name="prompt")
app.add_typer(data, name="data")


@app.callback(invoke_without_command=True)
def hasten(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Run open-weight language models faster and cheaper, and see what each speed-up costs."""
    if version:
        print(f"hasten {__version__}")
        raise typer.Exit


def main() -> None:
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. Errors are printed, or raised with ``--debug``."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            prepare_streams()
            result = app(list(arguments), standalone_mode=False, prog_name="hasten")
            sys.stdout.flush()  # a full disk shows here at the latest
        except (KeyboardInterrupt, typer.Abort):
            return INTERRUPTED
        except (BrokenPipeError, SystemExit):  # the reader closed standard output; typer then exits with code 1
            return 0
        except Exception as error:
            if "--debug" in arguments:
                raise
            code, message = _describe(error)
            with contextlib.suppress(OSError):  # standard error may be full, too
                print(f"error: {clip(printable(' '.join(message.split())), MAX_MESSAGE)}", file=sys.stderr)
            return code
        finally:
            end_output()
    return result if isinstance(result, int) else 0


def _describe(error: Exception) -> tuple[int, str]:
    """Return the exit code and the message of an error."""
    if isinstance(error, HastenError):
        return USER_ERROR, str(error)
    if isinstance(error, typer.TyperException):
        return USER_ERROR, _usage_message(error)
    if isinstance(error, OSError):
        return USER_ERROR, f"the system refuses to read or write: {error}."
    if isinstance(error, MemoryError):
        return USER_ERROR, "the memory of this machine is exhausted. Choose a smaller model, context or batch."
    return INTERNAL_ERROR, f"{type(error).__name__}: {error}. This is a bug in hasten; --debug shows the traceback."


def _usage_message(error: typer.TyperException) -> str:
    """Return the message of a command-line error, with the right or nearest spelling of a wrong name."""
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    command = getattr(context, "command", None)
    option = getattr(error, "option_name", None)
    if option and command is not None and message.startswith("No such option"):
        option = option.replace("_", "-")
        known = [name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]]
        return f"unknown option {option}. {remedy_for_unknown(option, known, RENAMED_FLAGS)}."
    if message.startswith("No such command") and command is not None:
        name = message.split("'")[1]
        return f"unknown command {name!r}. {nearest(name, command.commands)}."
    path = context.command_path if context is not None else "hasten"
    return f"{message}. See: {path} --help."


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
) -> None:
    """Print hasten's own warnings in one line. Warnings of libraries are for their developers."""
    if category.__module__.startswith("hasten."):
        print(f"warning: {printable(message)}", file=sys.stderr)
