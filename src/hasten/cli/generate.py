"""``hasten generate``: complete one prompt and stream it, or many prompts in one batch."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.cli import report
from hasten.cli.engine_options import ENGINE, Debug, Json, ModelArgument, ModelOption, load, one_model
from hasten.cli.interrupt import until_interrupted
from hasten.cli.options import Given, with_options
from hasten.cli.origins import Painter
from hasten.cli.sampling_options import SAMPLING, Settings, merge_settings
from hasten.core.errors import InvalidOption
from hasten.core.output import RequestOutput

if TYPE_CHECKING:
    from hasten.entrypoints.input_processor import Prompt
    from hasten.entrypoints.llm import LLM

FAILED = 1
INTERRUPTED = 130


@with_options(SAMPLING, ENGINE)
def generate(
    name: ModelArgument = None,
    prompt: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="Prompts; - reads standard input.", show_default=False)
    ] = None,
    model: ModelOption = None,
    prompt_file: Annotated[
        list[str] | None,
        typer.Option("--prompt-file", "-f", metavar="FILE", help="A prompt from a file; - reads standard input. May be repeated."),
    ] = None,
    prompt_ids: Annotated[
        list[str] | None, typer.Option("--prompt-ids", metavar="ID,ID,...", help="A prompt as token ids. May be repeated.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="NAME", help="Settings for a purpose, such as creative; options win.")
    ] = None,
    priority: Annotated[
        list[int] | None,
        typer.Option("--priority", help="Per prompt, with --scheduling-policy priority: the smaller, the sooner. May be repeated."),
    ] = None,
    show_drafts: Annotated[
        bool, typer.Option("--show-drafts", help="Colour each token by how it came: guessed, corrected, or after how many layers.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
    *,
    sampling: Given,
    engine: Given,
) -> None:
    """Complete one prompt and stream the answer, or complete many prompts in one batch."""
    texts = list(prompt or [])
    if model is not None and name is not None:  # --model names the model, so every argument is a prompt
        texts.insert(0, name)
        name = None
    chosen = one_model(name, model)
    prompts = _prompts(texts, prompt_file or [], prompt_ids or [])
    if priority and len(priority) != len(prompts):
        raise InvalidOption("--priority is given once per prompt", got=f"{len(priority)} for {len(prompts)} prompts")
    if priority and engine.get("scheduling_policy") != "priority":
        raise InvalidOption(
            "--priority needs --scheduling-policy priority", got=f"--scheduling-policy {engine.get('ordering', 'fcfs')}"
        )
    llm = load(chosen, engine)
    settings = merge_settings(llm.default_sampling_params(), preset, sampling)
    streams = not json and len(prompts) == 1 and settings.params.n == 1 and settings.params.beam_width is None
    if show_drafts and not streams:
        raise InvalidOption(
            "--show-drafts is for one answer as it comes", remedy="Leave out --json, -n, --beam-width and other prompts"
        )
    if streams:
        _stream(llm, prompts[0], settings, show_drafts)
    else:
        _batch(llm, chosen, prompts, settings, priority, json)


def _prompts(texts: list[str], files: list[str], id_lists: list[str]) -> list[Prompt]:
    """In the order: arguments, files, token ids. Raises ``InvalidOption`` if there are none, or a file cannot be read."""
    if [*texts, *files].count("-") > 1:
        raise InvalidOption("standard input is one prompt and was named more than once", remedy="Write - once")
    prompts: list[Prompt] = [sys.stdin.read() if text == "-" else text for text in texts]
    prompts += [_read(file) for file in files]
    prompts += [{"prompt_token_ids": SAMPLING.parse("bad_words_ids", [ids])[0]} for ids in id_lists]
    if not prompts and not sys.stdin.isatty():
        prompts = [sys.stdin.read()]
    if not prompts or prompts == [""]:
        raise InvalidOption("there is no prompt", remedy='Give one, for instance: hasten generate demo "def main("')
    return prompts


def _read(file: str) -> str:
    if file == "-":
        return sys.stdin.read()
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidOption(f"the prompt file {file} cannot be read", got=error, remedy="Give a file of UTF-8 text") from None


def _stream(llm: LLM, prompt: Prompt, settings: Settings, show_drafts: bool) -> None:
    """Text on standard output as it comes. On a terminal the prompt stands before it, dimmed."""
    if isinstance(prompt, str) and sys.stdout.isatty() and sys.stderr.isatty():
        print(f"\x1b[2m{prompt}\x1b[0m", end="", file=sys.stderr, flush=True)
    output, painter = None, _painter(llm, prompt, settings) if show_drafts else None
    for delta in until_interrupted(llm.stream(prompt, settings.params)):
        plain = delta.text if llm.tokenizer is not None else "".join(f"{token} " for token in delta.token_ids)
        print(painter.paint(delta) if painter else plain, end="", flush=True)
        output = delta.output
    print(flush=True)
    if painter:
        print(painter.legend(), file=sys.stderr)
    if output is None:
        print("stopped", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    _tell(settings, report.line(output))
    _check([output])


def _painter(llm: LLM, prompt: Prompt, settings: Settings) -> Painter:
    if llm.tokenizer is None:
        return Painter(None)
    ids = llm.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt.get("prompt_token_ids", ())
    return Painter(llm.tokenizer.detokenizer(settings.params.skip_special_tokens, tuple(ids)))


def _batch(llm: LLM, model: str, prompts: list[Prompt], settings: Settings, priority: list[int] | None, json: bool) -> None:
    begin = time.perf_counter()
    outputs = llm.generate(prompts, settings.params, priorities=priority)
    seconds = time.perf_counter() - begin
    for number, output in enumerate(outputs, 1):
        if json:
            print(report.as_json(output, model))
            continue
        for answer in output.outputs:
            if len(prompts) > 1 or len(output.outputs) > 1:
                print(f"--- prompt {number}, answer {answer.index + 1}")
            print(answer.text if llm.tokenizer is not None else " ".join(map(str, answer.token_ids)))
    _tell(settings, report.line(outputs[0]) if len(outputs) == 1 else report.total(outputs, seconds))
    _check(outputs)


def _tell(settings: Settings, text: str) -> None:
    if settings.origins:
        print(f"settings: {settings}", file=sys.stderr)
    print(text, file=sys.stderr)


def _check(outputs: list[RequestOutput]) -> None:
    """Exit code 1 if the model could not compute a request; the answers of the others have been printed."""
    failed = [f"prompt {number}: {output.error}" for number, output in enumerate(outputs, 1) if output.error is not None]
    for text in failed:
        print(f"error: {text}", file=sys.stderr)
    if failed:
        raise typer.Exit(FAILED)
