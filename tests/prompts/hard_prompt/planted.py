"""A task whose references are what the demo model writes after a hidden hard prompt, and benches to work on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hasten import LLM, SamplingParams
from hasten.entrypoints.task_options import TaskOptions
from hasten.prompts.hard_prompt.prompt_layout import with_hard_prompt
from hasten.prompts.load_variant import TemplateVariant
from hasten.prompts.metric import open_metric
from hasten.prompts.optimizer import Workbench
from hasten.prompts.run_file import RunFile
from hasten.prompts.task import PromptItem
from hasten.prompts.template import PromptTemplate

INITIAL = TemplateVariant("initial", PromptTemplate("initial", "{{ input }}"))
PLANTED = with_hard_prompt(INITIAL, "Compilermailheader locals_ascii", "planted")  # four tokens
NAMES = ("read", "parse", "load", "open", "find", "sort", "merge", "split", "count", "send", "print", "update")


def planted_items(llm: LLM) -> tuple[PromptItem, ...]:
    """Return items whose reference is the model's greedy output after the planted hard prompt."""
    inputs = [f"def {name}(self):\n" for name in NAMES]
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    outputs = llm.generate([PLANTED.render({"input": text}) for text in inputs], params, use_tqdm=False)
    texts = [output.outputs[0].text for output in outputs]
    return tuple(PromptItem(line, {"input": inputs[line]}, (texts[line],)) for line in range(len(inputs)))


def word_items(num: int = 6) -> tuple[PromptItem, ...]:
    """Return items for a model of words, without those that begin with w2, its end token; the second half has two references."""
    more = [("w80 w81",) if line > num // 2 else () for line in range(1, num + 1)]
    return tuple(
        PromptItem(line, {"input": f"w{30 + line} w{40 + line}"}, (f"w{50 + line} w{60 + line} w70", *more[line - 1]))
        for line in range(1, num + 1)
    )


@contextmanager
def workbench(llm: Any, items: Sequence[PromptItem], folder: Path, **changes: Any) -> Iterator[Workbench]:
    """Yield a bench with two thirds of the items to train on."""
    num = len(items) * 2 // 3
    with RunFile(folder / "run.jsonl") as run_file:
        bench = Workbench(
            llm=llm,
            train=tuple(items[:num]),
            validation=tuple(items[num:]),
            metric=open_metric("log_likelihood"),
            options=TaskOptions(),
            run_file=run_file,
            folder=folder,
            seed=0,
            on_log=lambda message: None,
        )
        yield dataclasses.replace(bench, **changes)
