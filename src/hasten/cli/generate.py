"""``hasten generate``: complete one prompt and stream it, or complete many prompts in one batch."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.cli import report
from hasten.cli.engine_options import ENGINE, Debug, Json, ModelArgument, ModelOption, load_llm, model_name
from hasten.cli.interrupt import INTERRUPTED, until_interrupted
from hasten.cli.kv_names import LoadKv, load_files
from hasten.cli.options import OptionValues, with_options
from hasten.cli.origins import TokenPainter
from hasten.cli.sampling_options import SAMPLING, ParamsOption, PresetOption, Settings, merge_settings, read_params
from hasten.cli.sections import SECTIONS, check_section_options, print_sections
from hasten.cli.streams import read_input, read_prompt_file
from hasten.cli.structured_options import STRUCTURED, read_structured, structured_flags
from hasten.cli.template_options import TEMPLATE, read_template
from hasten.core.errors import InvalidOption
from hasten.core.output import RequestOutput
from hasten.core.soft_prompt import SoftPrompt

if TYPE_CHECKING:
    from hasten.entrypoints.input_processor import Prompt
    from hasten.entrypoints.llm import LLM

REQUEST_FAILED = 1  # exit code


@with_options(TEMPLATE, STRUCTURED, SAMPLING, ENGINE, SECTIONS)
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
    preset: PresetOption = None,
    params: ParamsOption = None,
    priority: Annotated[
        list[int] | None,
        typer.Option("--priority", help="Per prompt, with --scheduling-policy priority: lower runs earlier. May be repeated."),
    ] = None,
    show_drafts: Annotated[
        bool, typer.Option("--show-drafts", help="Colour each token by its origin (accepted, corrected, bonus) or its exit layer.")
    ] = False,
    load_kv: LoadKv = None,
    soft_prompt: Annotated[
        str | None, typer.Option("--soft-prompt", metavar="DIR", help="Put a soft prompt (PEFT's format) before every prompt.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
    *,
    template_options: OptionValues,
    structured_options: OptionValues,
    sampling: OptionValues,
    engine: OptionValues,
    section_options: OptionValues,
) -> None:
    """Complete one prompt and stream the output, or complete many prompts in one batch."""
    texts, files, id_lists = list(prompt or []), prompt_file or [], prompt_ids or []
    if model is not None and name is not None:  # --model names the model, so every argument is a prompt
        texts, name = [name, *texts], None
    model = model_name(name, model)
    template_prompt = read_template(template_options, num_other_prompts=len([*texts, *files, *id_lists]))
    prompts = read_prompts(texts, files, id_lists) if template_prompt is None else []
    _check_priority(priority or [], len(prompts) or 1, engine.get("scheduling_policy", "fcfs"))
    sampling |= read_structured(structured_options)
    alone = {"--priority": priority, "--show-drafts": show_drafts, "--soft-prompt": soft_prompt}
    sections = check_section_options(section_options, prompts or [""], alone | structured_flags(structured_options))
    from_file = read_params(params)
    with load_llm(model, engine) as llm:  # closed, so that a result cache gets its hits and results
        if template_prompt is not None:
            prompts = [template_prompt.render(llm)]
        load_files(llm, load_kv)
        soft = None if soft_prompt is None else llm.load_soft_prompt(soft_prompt)
        settings = merge_settings(llm.default_sampling_params(), preset, sampling, from_file)
        if sections is not None:
            print_sections(llm, model, prompts, settings, sections, json)
        elif not json and len(prompts) == 1 and settings.params.n == 1 and settings.params.beam_width is None:
            stream_output(llm, prompts[0], settings, show_drafts, soft)
        else:
            _refuse_drafts(show_drafts)
            _run_batch(llm, model, prompts, settings, priority, json, soft)


def _refuse_drafts(show_drafts: bool) -> None:
    if show_drafts:
        remedy = "Leave out --json, --n, --beam-width and other prompts"
        raise InvalidOption("--show-drafts needs a single streamed output", remedy=remedy)


def _check_priority(priority: list[int], num_prompts: int, policy: str) -> None:
    if not priority:
        return
    if len(priority) != num_prompts:
        raise InvalidOption("--priority is given once per prompt", got=f"{len(priority)} for {num_prompts} prompts")
    if policy != "priority":
        raise InvalidOption("--priority needs --scheduling-policy priority", got=f"--scheduling-policy {policy}")


def read_prompts(texts: list[str], files: list[str], id_lists: list[str]) -> list[Prompt]:
    """Return the prompts in the order arguments, files, token ids.

    Raises ``InvalidOption`` for none or an unreadable file.
    """
    if [*texts, *files].count("-") > 1:
        raise InvalidOption("standard input is one prompt and was named more than once", remedy="Write - once")
    prompts: list[Prompt] = [read_input() if text == "-" else text for text in texts]
    prompts += [read_prompt_file(file) for file in files]
    prompts += [{"prompt_token_ids": SAMPLING.parse("bad_words_ids", [ids])[0]} for ids in id_lists]
    if not prompts and not sys.stdin.isatty():
        prompts = [read_input()]
    if not prompts or prompts == [""]:
        raise InvalidOption("there is no prompt", remedy='Give one, for instance: hasten generate demo "def main("')
    return prompts


def stream_output(
    llm: LLM, prompt: Prompt, settings: Settings, show_drafts: bool = False, soft_prompt: SoftPrompt | None = None
) -> None:
    """Print the text as it is generated. On a terminal the prompt is printed before it, dimmed."""
    if isinstance(prompt, str) and sys.stdout.isatty() and sys.stderr.isatty():
        print(f"\x1b[2m{prompt}\x1b[0m", end="", file=sys.stderr, flush=True)
    output, painter = None, _token_painter(llm, prompt, settings) if show_drafts else None
    for delta in until_interrupted(llm.stream(prompt, settings.params, soft_prompt=soft_prompt)):
        plain = delta.text if llm.tokenizer is not None else "".join(f"{token} " for token in delta.token_ids)
        print(painter.paint(delta) if painter else plain, end="", flush=True)
        output = delta.output
    print(flush=True)
    if painter:
        print(painter.legend(), file=sys.stderr)
    if output is None:
        print("stopped", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    _finish([output], settings, report.request_summary(output))


def _token_painter(llm: LLM, prompt: Prompt, settings: Settings) -> TokenPainter:
    if llm.tokenizer is None:
        return TokenPainter(None)
    ids = llm.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt.get("prompt_token_ids", ())
    return TokenPainter(llm.tokenizer.detokenizer(settings.params.skip_special_tokens, tuple(ids)))


def _run_batch(
    llm: LLM,
    model: str,
    prompts: list[Prompt],
    settings: Settings,
    priority: list[int] | None,
    json: bool,
    soft_prompt: SoftPrompt | None,
) -> None:
    start = time.perf_counter()
    outputs = llm.generate(prompts, settings.params, priorities=priority, soft_prompt=soft_prompt)
    seconds = time.perf_counter() - start
    for number, output in enumerate(outputs, 1):
        if json:
            print(report.as_json(output, model, settings.params))
            continue
        for completion in output.outputs:
            if len(prompts) > 1 or len(output.outputs) > 1:
                print(f"--- prompt {number}, output {completion.index + 1}")
            print(completion.text if llm.tokenizer is not None else " ".join(map(str, completion.token_ids)))
    if len(outputs) == 1:
        summary = report.request_summary(outputs[0])
    else:
        summary = report.batch_summary(outputs, seconds, llm.stats()["prefix_cache"]["advice"])
    _finish(outputs, settings, summary)


def _finish(outputs: list[RequestOutput], settings: Settings, summary: str) -> None:
    """Print settings, summary and errors on standard error. Exits with code 1 if a request failed."""
    errors = [f"error: prompt {number}: {output.error}" for number, output in enumerate(outputs, 1) if output.error is not None]
    shown = [f"settings: {settings}"] if settings.origins else []
    for text in [*shown, summary, *errors]:
        print(text, file=sys.stderr)
    if errors:
        raise typer.Exit(REQUEST_FAILED)
