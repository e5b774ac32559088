"""``hasten chat``: a conversation. Ctrl-C stops the answer and keeps the session."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hasten.cli import report
from hasten.cli.engine_options import SINGLE_REQUEST_ENGINE, Debug, ModelArgument, ModelOption, load_llm, model_name
from hasten.cli.interrupt import until_interrupted
from hasten.cli.kv_names import LoadKv, load_files
from hasten.cli.options import OptionValues, with_options
from hasten.cli.sampling_options import SAMPLING, ParamsOption, PresetOption, read_params
from hasten.cli.session import Session
from hasten.cli.slash_commands import run_command
from hasten.cli.structured_options import STRUCTURED, read_structured
from hasten.core.errors import HastenError

# A conversation continues from one answer, and only generate --json prints log-probabilities.
CHAT_SAMPLING = SAMPLING.without(("n", "beam_width", "length_penalty", "early_stopping", "logprobs"))


@with_options(STRUCTURED, CHAT_SAMPLING, SINGLE_REQUEST_ENGINE)
def chat(
    name: ModelArgument = None,
    model: ModelOption = None,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="The system message.")] = None,
    preset: PresetOption = None,
    params: ParamsOption = None,
    load_kv: LoadKv = None,
    debug: Debug = False,
    *,
    structured_options: OptionValues,
    sampling: OptionValues,
    engine: OptionValues,
) -> None:
    """Chat with a model; /help lists the commands.

    Without a terminal, each line of standard input is one turn.
    """
    model = model_name(name, model)
    from_file = read_params(params)
    sampling |= read_structured(structured_options)
    llm = load_llm(model, engine)
    load_files(llm, load_kv)
    session = Session(llm, model, system=system, preset=preset, options=sampling, file_values=from_file)
    if sys.stdin.isatty():
        import readline  # noqa: F401  line editing and history for input()

        _print_status("/help lists the commands; Ctrl-C stops an answer, Ctrl-D quits.")
    while (line := _read_line()) is not None:
        if line.strip() and not _run_turn(session, line):
            return


def _read_line() -> str | None:
    """Return the next line, or None at the end of input. Ctrl-C empties the line."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    while True:
        try:
            return input(">>> ")
        except KeyboardInterrupt:
            print()
            _print_status("/bye or Ctrl-D quits.")
        except EOFError:
            print()
            return None


def _run_turn(session: Session, line: str) -> bool:
    """Run one command or answer one question, and return whether the session continues.

    Errors are printed.
    """
    try:
        if not line.startswith("/"):
            _answer(session, line)
            return True
        result = run_command(session, line)
        if result.text:
            _print_status(result.text)
        if result.question is not None:
            _answer(session, result.question)
        return not result.quit
    except HastenError as error:
        _print_status(f"error: {error}")
        return True


def _answer(session: Session, question: str) -> None:
    """Stream one answer. The history keeps what an interrupted answer has produced."""
    text, output, is_in_thought = "", None, False
    try:
        for delta in until_interrupted(session.stream_answer(question)):
            if delta.reasoning:  # beside the answer, as the status lines
                print(delta.reasoning, end="", file=sys.stderr, flush=True)
                is_in_thought = True
            if delta.text and is_in_thought:  # the answer begins on a line of its own
                print("\n", file=sys.stderr, flush=True)
                is_in_thought = False
            print(delta.text, end="", flush=True)
            text += delta.text
            output = delta.output
    except HastenError:
        session.pop_question()
        raise
    print(flush=True)
    if output is not None and output.error is not None:
        session.pop_question()
        _print_status(f"error: {output.error}")
        return
    session.add_answer(text)
    _print_status("stopped" if output is None else report.request_summary(output))


def _print_status(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
