"""Checkpoints and heads with damaged files: hasten answers, or refuses them by name.

A case copies a tiny model, or what speeds it up (draft model, Medusa heads, EAGLE head, exits), damages a file or two, loads it and
generates. It must end in tokens or in a ``HastenError``, in bounded time and memory. An engine that was loaded before answers after
each case as it did at first.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hasten import LLM, SamplingParams
from hasten.checkpoints.formats.draft_ids import write_draft_ids
from hasten.core.errors import HastenError, InvalidRequest
from tests.fuzz.file_mutations import mutate
from tests.fuzz.report import Report
from tests.tiny_heads import write_heads
from tests.tiny_models import tiny_checkpoint, word_tokenizer

MODELS = ("llama-gqa", "llama-sharded", "llama-yarn", "llama-llama3", "qwen2-mixed-window", "qwen3-gqa", "mistral-window", "gpt2")
TARGET, DRAFT = "llama-gqa", "qwen2-tied"  # of one vocabulary
PROMPT = {"prompt_token_ids": [5, 9, 80, 3, 3, 41, 5, 9]}
SIZES: dict[str, Any] = {"max_model_len": 32, "kv_cache_memory": "1MiB", "max_num_batched_tokens": 16, "max_num_seqs": 2}
RULES = ("fixed", "token_table", "prompt_hash", "softmax", "entropy")


@dataclass(frozen=True, slots=True)
class Subject:
    """A folder that is damaged, and how an engine uses it."""

    folder: Path
    option: str | None = None  # of the engine, which names the folder; None: it is the model
    method: str = "off"


def run(rng: random.Random, cases: int, report: Report) -> None:
    with tempfile.TemporaryDirectory(prefix="hasten-fuzz-") as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of reduced sizes
        folder = Path(name)
        subjects, target = _write_subjects(folder), tiny_checkpoint(TARGET, folder)
        canary = LLM(str(target), **SIZES)
        expected = _generate(canary)
        for case_rng in report.each(rng, cases):
            subject = case_rng.choice(subjects)
            damaged = folder / "damaged"
            shutil.copytree(subject.folder, damaged)
            what = mutate(damaged, case_rng)
            options = _draw_options(subject, case_rng)
            report.case = f"{subject.folder.name} {subject.option or 'model'}, {what}, {options}"
            if subject.option is not None:
                options |= {subject.option: str(damaged), "speculative_method": subject.method}
            try:
                _generate(LLM(str(target if subject.option else damaged), **SIZES, **options), case_rng)
                report.outcomes["answered"] += 1
            except HastenError as error:
                report.outcomes[type(error).__name__] += 1
                if "\n" in str(error):
                    report.fail(f"the message has several lines: {error}")
            except Exception as error:
                report.outcomes["fault"] += 1
                report.fail(f"{type(error).__name__}: {error}"[:500])
            if _generate(canary) != expected:
                report.fail("another engine answers differently")
            shutil.rmtree(damaged)


def _draw_options(subject: Subject, rng: random.Random) -> dict[str, Any]:
    options: dict[str, Any] = {"dtype": rng.choice(["auto", "auto", "float32", "bfloat16", "float16"])}
    if rng.random() < 0.25:
        return options | {"backend": "torch"}
    return options | {
        "quantization": rng.choice([None, None, "int8", "int4", "int8-weight-only"]),
        "kv_cache_dtype": rng.choice(["auto", "auto", "int8"]),
    }


def _generate(llm: LLM, rng: random.Random | None = None) -> list[tuple[int, ...]]:
    """Return the tokens of greedy answers. With ``rng``, requests with exit rules follow, which may be refused."""
    params = SamplingParams(temperature=0, max_tokens=3 if rng is None else 8, ignore_eos=True)
    output = llm.generate(PROMPT, params, use_tqdm=False)[0]
    if rng is not None:
        llm.generate(PROMPT, None, use_tqdm=False)  # with the checkpoint's own settings
        rule = rng.choice(RULES)
        with suppress(InvalidRequest):  # most engines have no exits
            exits = params.replace(exit_rule=rule, exit_layer=1 if rule == "fixed" else None)
            llm.generate(PROMPT, exits, use_tqdm=False)
    return [completion.token_ids for completion in output.outputs]


def _write_subjects(folder: Path) -> list[Subject]:
    models = [tiny_checkpoint(name, folder) for name in MODELS]
    with_tokenizer = folder / "with-tokenizer"
    shutil.copytree(models[0], with_tokenizer)
    word_tokenizer(101).save_pretrained(with_tokenizer)
    draft = folder / "draft"
    shutil.copytree(tiny_checkpoint(DRAFT, folder), draft)
    write_draft_ids(draft, torch.arange(0, 100, 2))
    for name in ("medusa", "medusa-truncated", "eagle", "exits"):
        write_heads(name, folder / name, models[0])
    return [
        *map(Subject, models),
        Subject(with_tokenizer),
        Subject(draft, "draft_model", "draft_model"),
        Subject(folder / "medusa", "draft_heads", "medusa"),
        Subject(folder / "medusa-truncated", "draft_heads", "medusa"),
        Subject(folder / "eagle", "draft_heads", "eagle"),
        Subject(folder / "exits", "exits", "self_speculation"),
    ]
