"""``hasten diagnose``: what is wrong with outputs, and which setting to turn next."""

from __future__ import annotations

import dataclasses
import json as encoder
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hasten.cli import report
from hasten.cli.engine_options import MODEL_HELP, SINGLE_REQUEST_ENGINE, Debug, Json, load_llm
from hasten.cli.options import OptionValues, with_options
from hasten.cli.presets import LanguageOption
from hasten.cli.sampling_options import SAMPLING, ParamsOption, read_params
from hasten.cli.streams import read_prompt_file
from hasten.core.errors import HastenError, clip, printable

if TYPE_CHECKING:
    from hasten.cli.diagnosed_outputs import DiagnosedOutput
    from hasten.entrypoints.llm import LLM
    from hasten.quality.diagnosis.finding import Finding
    from hasten.quality.diagnosis.observed import ObservedOutput

Language = Literal["en", "zh"]
LOGPROBS = 5  # of a second run, for the detectors that need them
MAX_SHOWN = 300  # characters of an output
_WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "line": "line {line}: ",
        "answer": "line {line}, output {number}: ",
        "good": "no fault found",
        "next": "next: ",
        "before": "before",
        "after": "after",
        "prompts": "prompts: ",
        "not_run": "not run again: ",
        "no_prompt": "the prompt is unknown",
        "stop": "",
    },
    "zh": {
        "line": "第 {line} 行：",
        "answer": "第 {line} 行，输出 {number}：",
        "good": "没有发现问题",
        "next": "下一步：",
        "before": "之前",
        "after": "之后",
        "prompts": "提示：",
        "not_run": "没有重新运行：",
        "no_prompt": "不知道提示",
        "stop": "。",
    },
}


@dataclass(frozen=True, slots=True)
class SecondRun:
    """The output with the advised setting and what is left of the fault, or why there is none."""

    output: ObservedOutput
    value: float = 0.0
    error: str | None = None


@with_options(SAMPLING, SINGLE_REQUEST_ENGINE)
def diagnose(
    file: Annotated[str, typer.Argument(metavar="FILE", help="One text, or outputs in lines of JSON; - reads standard input.")],
    prompt: Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="The prompt of outputs that name none.")] = None,
    finish_reason: Annotated[
        Literal["stop", "length"] | None, typer.Option("--finish-reason", help="Why outputs ended that do not say it.")
    ] = None,
    params: ParamsOption = None,
    fix: Annotated[
        str | None, typer.Option("--fix", metavar="MODEL", help=f"Run again with the advised settings, and show both. {MODEL_HELP}")
    ] = None,
    language: LanguageOption = "en",
    json: Json = False,
    debug: Debug = False,
    *,
    sampling: OptionValues,
    engine: OptionValues,
) -> None:
    """Say what is wrong with outputs (loops, cuts, ...) and which setting to turn next.

    The sampling options are the settings that the outputs were made with, where the lines do not name them.
    """
    from hasten.cli.diagnosed_outputs import read_outputs

    settings = {**read_params(params), **sampling}
    outputs = read_outputs(
        read_prompt_file(file, "file"),
        prompt=prompt,
        finish_reason=finish_reason,
        settings=settings,
        is_jsonl=Path(file).suffix.lower() == ".jsonl",
    )
    from hasten.quality.diagnosis.diagnose import diagnose as find_faults

    found = [(output, find_faults(output.observed, output.index) if output.has_text else ()) for output in outputs]
    if fix is None:
        second: list[SecondRun | None] = [None] * len(found)
    else:
        with load_llm(fix, engine) as llm:
            second = [_run_again(llm, output, findings, language) for output, findings in found]
    order = _prompt_order(outputs)
    if json:
        _print_json(found, second, order, language)
        return
    for (output, findings), run in zip(found, second, strict=True):
        if output.has_text:
            _print_findings(output, findings, run, language, num_outputs=len(outputs))
    if order is not None:
        print("\n".join([_WORDS[language]["prompts"] + order.title(language), *_explained(order, language)]))


def _prompt_order(outputs: list[DiagnosedOutput]) -> Finding | None:
    """Return the finding about the order of the prompts, one per line."""
    from hasten.quality.diagnosis.diagnose import diagnose_prompts

    first = {output.line: output for output in reversed(outputs)}
    lines = [first[line] for line in sorted(first)]
    texts = [output.observed.prompt for output in lines if output.observed.prompt is not None]
    if len(texts) == len(lines):
        return diagnose_prompts(texts)
    return diagnose_prompts([output.prompt_token_ids for output in lines])


def _run_again(llm: LLM, output: DiagnosedOutput, findings: tuple[Finding, ...], language: Language) -> SecondRun | None:
    """Return the output with the first advice; None without advice that changes a sampling setting."""
    from hasten.quality.diagnosis.diagnose import DETECTORS

    observed = output.observed
    advice = findings[0].advice if findings else None
    if advice is None or not advice.is_sampling_setting:
        return None
    prompt = {"prompt_token_ids": list(output.prompt_token_ids)} if output.prompt_token_ids else observed.prompt
    if prompt is None:
        return SecondRun(observed, error=_WORDS[language]["no_prompt"])
    params = observed.params.replace(**{advice.parameter: advice.value, "n": 1})
    if params.beam_width is None:
        params = params.replace(logprobs=max(LOGPROBS, params.logprobs or 0))
    try:
        request = llm.generate(prompt, params)[0]
    except HastenError as error:  # a prompt that this model cannot take; the other outputs are run all the same
        return SecondRun(observed, error=str(error))
    if request.error is not None:
        return SecondRun(observed, error=request.error)
    answer = request.outputs[0]
    again = dataclasses.replace(
        observed,
        text=answer.text,
        token_ids=answer.token_ids,
        logprobs=answer.logprobs or (),
        finish_reason=answer.finish_reason,
        stop_reason=answer.stop_reason,
        params=params,
    )
    return SecondRun(again, DETECTORS[findings[0].fault](again).value)


def _explained(finding: Finding, language: Language) -> Iterator[str]:
    words = _WORDS[language]
    yield f"  {finding.sentence(language)}"
    yield f"  {words['next']}{finding.advice_sentence(language)}{words['stop']}"


def _print_findings(
    output: DiagnosedOutput, findings: tuple[Finding, ...], run: SecondRun | None, language: Language, *, num_outputs: int
) -> None:
    words = _WORDS[language]
    place = words["answer" if output.index else "line"].format(line=output.line, number=output.index + 1) if num_outputs > 1 else ""
    if not findings:
        print(f"{place}{words['good']}")
    for finding in findings:
        print("\n".join([place + finding.title(language), *_explained(finding, language)]))
    if run is None:
        return
    if run.error is not None:
        print(f"  {words['not_run']}{run.error}")
        return
    print(f"  {words['before']} ({findings[0].measurement.value:.2f}): {_shown(output.observed.text)}")
    print(f"  {words['after']} ({run.value:.2f}): {_shown(run.output.text)}")


def _shown(text: str) -> str:
    return clip(printable(repr(text)), MAX_SHOWN)


def _print_json(
    found: list[tuple[DiagnosedOutput, tuple[Finding, ...]]],
    second: list[SecondRun | None],
    order: Finding | None,
    language: Language,
) -> None:
    for (output, findings), run in zip(found, second, strict=True):
        content: dict[str, Any] = {"line": output.line, "index": output.index}
        content["findings"] = [finding.as_dict(language) for finding in findings]
        if run is not None and run.error is not None:
            content["fix"] = {"error": run.error}
        elif run is not None:
            params = report.changed_settings(run.output.params)
            content["fix"] = {
                "text": run.output.text,
                "value": run.value,
                "params": params,
                "finish_reason": run.output.finish_reason,
            }
        print(encoder.dumps(content, ensure_ascii=False))
    if order is not None:
        print(encoder.dumps({"line": None, "index": None, "findings": [order.as_dict(language)]}, ensure_ascii=False))
