"""``generate_examples``: outputs of a teacher for prompts. ``generate_texts``: for passages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from hasten.compress.distill.data.prompt_file import PromptRecord
from hasten.compress.distill.data.recorded_teacher import RecordedTeacher
from hasten.compress.distill.data.text_teacher import TeacherText, TextRequest
from hasten.core.sampling_params import SamplingParams
from hasten.training.corpus import derived_seed

Record = dict[str, Any]
_CUT = "\ufffd"  # what stands for a part of a character


def generate_examples(
    teacher: RecordedTeacher,
    prompts: Sequence[PromptRecord],
    params: SamplingParams,
    *,
    seed: int,
    keep_cut: bool,
    dropped: Counter[str],
) -> Iterator[Record]:
    """Yield ``params.n`` records per prompt: input, output, and how the output ended.

    Outputs that were cut at ``max_tokens`` are dropped unless ``keep_cut``, and blank ones always; ``dropped`` counts both. Prompt
    i is sampled with a seed of its own.
    """
    requests = (
        TextRequest(prompt.prompt, params.replace(seed=derived_seed(seed, "generate", i))) for i, prompt in enumerate(prompts)
    )
    for prompt, texts in zip(prompts, teacher.write(requests), strict=True):
        if not texts:
            dropped["too long for the context"] += 1
        for number, text in enumerate(texts):
            if text.is_cut and not keep_cut:
                dropped["cut at max_tokens"] += 1
            elif not text.text.strip():
                dropped["blank"] += 1
            else:
                yield {**prompt.others, "input": prompt.input_text, **output_fields(text), "sample": number}


def output_fields(text: TeacherText) -> Record:
    """Return the fields of a record that say what the teacher wrote."""
    fields: Record = {"output": text.text, "finish_reason": text.finish_reason, "num_tokens": text.num_tokens}
    return fields if text.reasoning is None else {**fields, "reasoning": text.reasoning}


def generate_texts(
    teacher: RecordedTeacher, passages: Sequence[tuple[str, Sequence[int]]], params: SamplingParams, *, seq_len: int, seed: int
) -> Iterator[Record]:
    """Yield one text of ``seq_len`` tokens per passage, which the teacher continues.

    A passage is a text and its token ids. Tokens may cut characters: one that a passage begins comes whole with its continuation,
    and others at the ends are left out.
    """
    settings = params.replace(n=1, ignore_eos=True, stop=())
    requests = (
        TextRequest(
            {"prompt_token_ids": list(ids)},
            settings.replace(seed=derived_seed(seed, "generate", i), max_tokens=seq_len - len(ids)),
        )
        for i, (_, ids) in enumerate(passages)
    )
    for (passage, _), written in zip(passages, teacher.write(requests), strict=True):
        yield from ({"text": passage.strip(_CUT) + text.text.rstrip(_CUT)} for text in written)
