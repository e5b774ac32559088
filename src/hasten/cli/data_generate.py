"""``hasten data generate``: outputs of a teacher for prompts, or continuations of passages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten.cli.data_run import (
    DATA_SAMPLING,
    PROMPTS_HELP,
    TEACHER_ENGINE,
    Chat,
    DataRun,
    Out,
    Teacher,
    file_digest,
    merged_params,
)
from hasten.cli.engine_options import Debug
from hasten.cli.options import OptionValues, with_options
from hasten.cli.sampling_options import ParamsOption, PresetOption, read_params
from hasten.core.errors import InvalidOption

if TYPE_CHECKING:
    from hasten.entrypoints.llm import LLM


PromptsFile = Annotated[Path | None, typer.Option("--prompts", metavar="FILE", help=PROMPTS_HELP)]
TextFile = Annotated[
    Path | None,
    typer.Option("--text", metavar="FILE", help="Instead of prompts: a text, from which passages to continue are drawn."),
]
Count = Annotated[int, typer.Option("--count", min=1, help="With --text: number of texts.")]
SeqLen = Annotated[int, typer.Option("--seq-len", min=8, help="With --text: tokens of a text, of which a passage is an eighth.")]
KeepCut = Annotated[bool, typer.Option("--keep-cut", help="Keep outputs that were cut at --max-tokens.")]


@with_options(DATA_SAMPLING, TEACHER_ENGINE)
def generate(
    teacher: Teacher,
    out: Out,
    prompts: PromptsFile = None,
    text: TextFile = None,
    count: Count = 1000,
    seq_len: SeqLen = 512,
    keep_cut: KeepCut = False,
    chat: Chat = False,
    preset: PresetOption = None,
    params: ParamsOption = None,
    debug: Debug = False,
    *,
    sampling: OptionValues,
    engine: OptionValues,
) -> None:
    """Write outputs of a teacher for prompts, or with --text its continuations of passages.

    A run that was stopped or killed goes on when the command is given again.
    """
    from hasten.compress.distill.data.generate import generate_examples, generate_texts
    from hasten.compress.distill.data.prompt_file import read_prompts

    if (prompts is None) == (text is None):
        raise InvalidOption("the teacher needs either prompts or a text", remedy="Give one of --prompts and --text")
    records = [] if prompts is None else read_prompts(prompts)
    from_file = read_params(params)
    settings = {
        "command": "generate",
        "teacher": teacher,
        "prompts": file_digest(prompts),
        "text": file_digest(text),
        "count": None if text is None else [count, seq_len],
        "keep_cut": keep_cut,
        "chat": chat,
        "sampling": {"preset": preset, **from_file, **sampling},
    }
    with DataRun(out, settings, len(records) or count) as run, run.teacher(teacher, engine, chat=chat) as (llm, recorded):
        merged = merged_params(llm, preset, sampling, from_file)
        seed = merged.seed or 0
        if text is None:
            run.publish(generate_examples(recorded, records, merged, seed=seed, keep_cut=keep_cut, dropped=run.dropped))
        else:
            passages = _passages(llm, text, count, seq_len, seed)
            run.publish(generate_texts(recorded, passages, merged, seq_len=seq_len, seed=seed))


def _passages(llm: LLM | None, text: Path, count: int, seq_len: int, seed: int) -> list[tuple[str, Any]]:
    from hasten.training.documents import PROMPT_DIVISOR, cut_prompts, encode_documents

    if llm is None or llm.tokenizer is None:
        raise InvalidOption("passages are cut by a tokenizer, which this teacher has not", remedy="Give --prompts instead")
    documents = encode_documents(text, llm.tokenizer)
    prompts = cut_prompts(documents, count, max(1, seq_len // PROMPT_DIVISOR), seed)
    return [(llm.tokenizer.decode(ids, skip_special_tokens=True), ids) for ids in prompts]
