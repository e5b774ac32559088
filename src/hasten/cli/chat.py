"""``hasten chat``: a conversation. Ctrl-C stops the answer and keeps the session."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hasten.cli import report
from hasten.cli.engine_options import ENGINE_OF_ONE, Debug, ModelArgument, ModelOption, load, one_model
from hasten.cli.interrupt import until_interrupted
from hasten.cli.options import Given, OptionGroup, with_options
from hasten.cli.sampling_options import HELP, SAMPLING
from hasten.cli.session import Session
from hasten.cli.slash_commands import obey
from hasten.core.errors import HastenError

# One answer goes on; log-probabilities are for programs, which use generate --json.
_NOT_HERE = ("n", "beam_width", "length_penalty", "early_stopping", "logprobs")
SAMPLING_OF_ONE = OptionGroup(
    "sampling", SAMPLING.title, SAMPLING.source, {name: text for name, text in HELP.items() if name not in _NOT_HERE}
)


@with_options(SAMPLING_OF_ONE, ENGINE_OF_ONE)
def chat(
    name: ModelArgument = None,
    model: ModelOption = None,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="The system message.")] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="NAME", help="Settings for a purpose, such as creative; options win.")
    ] = None,
    debug: Debug = False,
    *,
    sampling: Given,
    engine: Given,
) -> None:
    """Talk with a model; /help lists what else can be said. Without a terminal, each line of standard input is one turn."""
    chosen = one_model(name, model)
    session = Session(load(chosen, engine), chosen, system=system, preset=preset, given=sampling)
    if sys.stdin.isatty():
        import readline  # noqa: F401  line editing and history for input()

        _tell("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves.")
    while (line := _read()) is not None:
        if line.strip() and not _turn(session, line):
            return


def _read() -> str | None:
    """The next line, or None at the end. Ctrl-C empties the line."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    while True:
        try:
            return input(">>> ")
        except KeyboardInterrupt:
            print()
            _tell("/bye or Ctrl-D leaves.")
        except EOFError:
            print()
            return None


def _turn(session: Session, line: str) -> bool:
    """Whether the session goes on. What the user did wrong is told, and the session goes on."""
    try:
        if not line.startswith("/"):
            _answer(session, line)
            return True
        told = obey(session, line)
        if told.text:
            _tell(told.text)
        if told.question is not None:
            _answer(session, told.question)
        return not told.leave
    except HastenError as error:
        _tell(f"error: {error}")
        return True


def _answer(session: Session, question: str) -> None:
    """Streams one answer. A stopped answer stays in the conversation as far as it came."""
    text, output = "", None
    try:
        for delta in until_interrupted(session.ask(question)):
            print(delta.text, end="", flush=True)
            text += delta.text
            output = delta.output
    except HastenError:
        session.forget()
        raise
    print(flush=True)
    if output is not None and output.error is not None:
        session.forget()
        _tell(f"error: {output.error}")
        return
    session.answer(text)
    _tell("stopped" if output is None else report.line(output))


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
