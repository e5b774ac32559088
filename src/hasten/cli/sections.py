"""``hasten generate --sections``: an answer whose sections are decoded in parallel."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from hasten.cli.interrupt import INTERRUPTED, until_interrupted
from hasten.cli.options import OptionGroup, OptionValues
from hasten.cli.sampling_options import Settings
from hasten.core.errors import InvalidOption

if TYPE_CHECKING:
    from hasten.entrypoints.input_processor import Prompt
    from hasten.entrypoints.llm import LLM
    from hasten.entrypoints.sections.output import SectionsOutput

SECTION_FAILED = 1  # exit code

HELP = {
    "sections": "Answer the prompt, a question, in sections that are decoded in parallel.",
    "section_headings": "With --sections: the headings, separated by semicolons; the model writes an outline if left out.",
    "max_sections": "With --sections: maximum number of sections.",
    "section_tokens": "With --sections: maximum tokens of a section.",
    "router": "With --sections: decode plainly where the wording asks for one connected or short answer.",
}


@dataclass(frozen=True, slots=True)
class SectionOptions:
    sections: bool = False
    section_headings: str | None = None
    max_sections: int = 8
    section_tokens: int = 256
    router: bool = True


SECTIONS = OptionGroup("section_options", "Sections", SectionOptions, HELP)


def check_section_options(values: OptionValues, prompts: Sequence[Prompt], others: Mapping[str, object]) -> SectionOptions | None:
    """Return the options, or None without ``--sections``. Raises ``InvalidOption`` for a conflict.

    ``others``: options that do not go with sections -> what was given.
    """
    options = SectionOptions(**values)
    if not options.sections:
        unused = [f"--{'no-' * (value is False)}{name.replace('_', '-')}" for name, value in values.items() if name != "sections"]
        if unused:
            raise InvalidOption("options of sections need --sections", got=", ".join(unused), remedy="Add --sections")
        return None
    if len(prompts) > 1:
        raise InvalidOption("--sections answers one question", got=f"{len(prompts)} prompts", remedy="Ask them one by one")
    if not isinstance(prompts[0], str):
        raise InvalidOption("--sections needs a question as text", got="--prompt-ids", remedy="Pass the question as an argument")
    if conflicts := [name for name, given in others.items() if given]:
        raise InvalidOption("--sections runs several requests for one text", got=", ".join(conflicts), remedy="Leave it out")
    return options


def print_sections(
    llm: LLM, model: str, prompts: Sequence[Prompt], settings: Settings, options: SectionOptions, as_json: bool
) -> None:
    """Print headings and sections as they come, or the output as JSON, and a summary on standard error.

    Exits with code 1 if a section failed.
    """
    listed = options.section_headings
    headings = None if listed is None else [part for part in listed.replace("；", ";").split(";") if part.strip()]
    output = None
    deltas = llm.stream_sections(
        str(prompts[0]),
        settings.params,
        skeleton=headings,
        max_sections=options.max_sections,
        section_tokens=options.section_tokens,
        router=options.router,
    )
    for delta in until_interrupted(deltas):
        if not as_json:
            print(delta.text, end="", flush=True)
        output = delta.output
    if not as_json:
        print(flush=True)
    if output is None:
        print("stopped", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if as_json:
        print(json.dumps({"model": model, **output.as_dict()}, ensure_ascii=False))
    shown = [f"settings: {settings}"] if settings.origins else []
    for line in [*shown, *summary_lines(output), *(f"error: {error}" for error in output.errors)]:
        print(line, file=sys.stderr)
    if output.errors:
        raise typer.Exit(SECTION_FAILED)


def summary_lines(output: SectionsOutput) -> list[str]:
    """Return a line with the counts, after those that say why sections waited or were not used.

    ``3 sections, at most 2 at a time | prompt 300 tokens (192 cached, 108 computed) | output 288 tokens | 2.10 s | 137.1 tokens/s``
    """
    prompt, cached = output.num_prompt_tokens, output.num_cached_tokens
    plain = "decoded plainly" if output.plain_reason is not None else None
    how = plain or f"{len(output.sections)} sections, at most {output.max_parallel} at a time"
    rate = output.num_output_tokens / max(output.wall_time, 1e-9)
    reasons = [f"decoded plainly: {output.plain_reason}"] if plain else []
    reasons += [f"section {each.index + 1} waited: {each.reason}" for each in output.sections if each.reason is not None]
    counts = f"prompt {prompt} tokens ({cached} cached, {prompt - cached} computed) | output {output.num_output_tokens} tokens"
    return [*reasons, f"{how} | {counts} | {output.wall_time:.2f} s | {rate:.1f} tokens/s"]
