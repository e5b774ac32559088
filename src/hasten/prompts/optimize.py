"""``optimize``: a better prompt for a task, and what it is worth on items that nothing was chosen by.

::

    train, validation --> method --> chosen.json --> held-out items, read once --> report.json

The choice is on the disk before the held-out items are read, so no later run can choose by them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.core.errors import InvalidOption
from hasten.entrypoints.task_options import TaskOptions
from hasten.prompts.evaluate import NUMERIC, default_params, evaluate, prompt_lengths, prompt_seconds
from hasten.prompts.evaluation import Evaluation, score_difference
from hasten.prompts.held_out_ledger import HeldOutLedger
from hasten.prompts.load_variant import TemplateVariant
from hasten.prompts.metric import Metric, text_digest
from hasten.prompts.optimization_folder import Choice, OptimizationFolder
from hasten.prompts.optimization_report import OptimizationReport, OptimizationSummary, PromptFigures
from hasten.prompts.optimizer import Candidate, Workbench, find_optimizer
from hasten.prompts.run_file import RunFile
from hasten.prompts.task import PromptItem, PromptTask, TaskSplit
from hasten.prompts.template import PromptTemplate
from hasten.prompts.variant_comparison import check_variants

if TYPE_CHECKING:
    from hasten.entrypoints.llm import LLM

FRACTIONS = (0.5, 0.25, 0.25)  # of train, validation and held-out items
_DIGEST_LENGTH = 16  # hexadecimal digits, of a text that a message shows only to tell it from another one


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimization:
    """What is to be optimised. Raises ``HastenError`` before a model is loaded if it cannot work."""

    task: PromptTask
    initial: TemplateVariant
    method: str
    options: Any  # of the method, an instance of its ``OPTIONS``
    metric: Metric
    task_options: TaskOptions = dataclasses.field(default_factory=TaskOptions)
    fractions: Sequence[float] = FRACTIONS
    seed: int = 0

    def __post_init__(self) -> None:
        check_variants([self.initial], self.task.items)
        split = self.split()
        if not split.validation or not len(split.held_out):
            raise InvalidOption(
                "an optimisation needs validation items to choose by and held-out items to report on",
                got=f"the fractions {', '.join(map(str, self.fractions))}",
                remedy="Give each of them a part",
            )
        find_optimizer(self.method)

    def split(self) -> TaskSplit:
        return self.task.split(self.seed, self.fractions)

    def settings(self) -> dict[str, Any]:
        """Return all that the result depends on beside the model, as plain data."""
        identity = self.metric.identity
        items = sorted(f"{item.input_key} {json.dumps(item.references)}" for item in self.task.items)
        return {
            "task": text_digest(*items)[:_DIGEST_LENGTH],
            "method": self.method,
            **{f"{self.method}.{name}": value for name, value in dataclasses.asdict(self.options).items()},
            "template": self.initial.digest[:_DIGEST_LENGTH],
            "metric": identity if len(identity) <= 2 * _DIGEST_LENGTH else text_digest(identity)[:_DIGEST_LENGTH],
            "max_tokens": self.task_options.max_tokens,
            "stop": list(self.task_options.stop_strings),
            "chat": self.task_options.chat,
            "fractions": [float(fraction) for fraction in self.fractions],
            "seed": self.seed,
        }


def optimize(
    llm: LLM,
    wanted: Optimization,
    out: Path,
    *,
    on_log: Callable[[str], None] = lambda line: None,
    on_progress: Callable[[int, int], None] = lambda num_done, total: None,
) -> OptimizationReport:
    """Return the report of an optimisation whose files are in the folder ``out``.

    The same call goes on after a kill, and returns the report of a finished run without computing anything. Raises ``HastenError``.
    """
    folder = OptimizationFolder(out)
    folder.open({**wanted.settings(), **model_settings(llm)})
    if (report := folder.report()) is not None:
        on_log(f"{out} holds the report of this optimisation")
        return report
    ledger, split = HeldOutLedger(), wanted.split()
    with RunFile(folder.state / "results.jsonl") as run_file:
        scoring = _Scoring(llm, wanted, run_file)
        choice = folder.chosen(llm)
        if choice is None:
            bench = Workbench(
                llm=llm,
                train=split.train,
                validation=split.validation,
                metric=wanted.metric,
                options=wanted.task_options,
                run_file=run_file,
                folder=folder.state,
                seed=wanted.seed,
                on_log=on_log,
                on_progress=on_progress,
                num_reserved=_num_reserved(llm, wanted, split),
            )
            candidate = find_optimizer(wanted.method).optimize(bench, wanted.initial, wanted.options)
            choice = folder.choose(candidate, bench.num_tokens)
            on_log("the prompt is chosen; now the held-out items are read")
        report = _report(scoring, choice, split, ledger)
        folder.finish(report)
    return report


def input_template(variables: Iterable[str]) -> TemplateVariant:
    """Return the template that is the input alone.

    Several variables stand on a line ``name: text`` each.
    """
    names = list(variables)
    text = f"{{{{ {names[0]} }}}}" if len(names) == 1 else "\n".join(f"{name}: {{{{ {name} }}}}" for name in names)
    return TemplateVariant("input", PromptTemplate("input", text, "The input alone."))


def model_settings(llm: LLM) -> dict[str, Any]:
    """Return what the result depends on in the model."""
    digest, described = llm.digest(), llm.describe()
    facts = {name: described[name] for name in NUMERIC}
    values: dict[str, Any] = json.loads(json.dumps(facts, default=str))
    return {"model": digest.weights[:_DIGEST_LENGTH], "tokenizer": digest.text[:_DIGEST_LENGTH], **values}


def _num_reserved(llm: LLM, wanted: Optimization, split: TaskSplit) -> int:
    """Return by how many tokens the longest held-out prompt exceeds all others.

    What is chosen then fits it too. Lengths are all that is read of held-out items. Raises ``HastenError`` if the initial prompt of
    an item exceeds the context.
    """
    options, items = wanted.task_options, wanted.task.items
    params = default_params(options.max_tokens, options.stop_strings)
    lengths = prompt_lengths(llm, wanted.initial, items, wanted.metric, params, chat=options.chat)
    lines = {item.line for item in (*split.train, *split.validation)}
    return max(lengths) - max(length for item, length in zip(items, lengths, strict=True) if item.line in lines)


@dataclass(frozen=True, slots=True)
class _Scoring:
    """Scores of chosen prompts, outside of the method."""

    llm: LLM
    wanted: Optimization
    run_file: RunFile

    def evaluate(self, candidate: Candidate, items: Sequence[PromptItem]) -> Evaluation:
        options = self.wanted.task_options
        return evaluate(
            self.llm,
            candidate.variant,
            items,
            self.wanted.metric,
            default_params(options.max_tokens, options.stop_strings),
            chat=options.chat,
            run_file=self.run_file,
            visible=True,
            **_soft_prompt(candidate),
        )

    def figures(self, candidate: Candidate, validation: Evaluation, held_out: Evaluation) -> PromptFigures:
        texts = [candidate.variant.render(item.variables) for item in held_out.items]
        return PromptFigures(
            validation=validation.mean,
            validation_interval=validation.interval,
            held_out=held_out.mean,
            held_out_interval=held_out.interval,
            prompt_tokens=held_out.mean_prompt_tokens,
            prompt_seconds=prompt_seconds(self.llm, texts, chat=self.wanted.task_options.chat, **_soft_prompt(candidate)),
        )


def _report(scoring: _Scoring, choice: Choice, split: TaskSplit, ledger: HeldOutLedger) -> OptimizationReport:
    wanted, best = scoring.wanted, choice.candidate
    prompts = (Candidate(wanted.initial), best)
    validation = [scoring.evaluate(prompt, split.validation) for prompt in prompts]
    items = split.held_out.use()
    num_earlier_reads = ledger.record(items, choice.run_id)  # first, so that a run that is stopped here counts
    held_out = [scoring.evaluate(prompt, items) for prompt in prompts]
    difference = score_difference(held_out[1], held_out[0])
    summary = OptimizationSummary(
        method=wanted.method,
        metric=wanted.metric.name,
        model=str(scoring.llm.describe()["model"]),
        is_changed=best.soft_prompt is not None or best.variant.digest != wanted.initial.digest,
        is_soft=best.soft_prompt is not None,
        num_train=len(split.train),
        num_validation=len(split.validation),
        num_held_out=len(items),
        difference=difference.difference,
        difference_interval=difference.interval,
        is_real=difference.is_real,
        optimization_tokens=choice.num_tokens,
        report_tokens=sum(evaluation.num_tokens for evaluation in (*validation, *held_out)),
        num_earlier_reads=num_earlier_reads,
    )
    initial, found = (scoring.figures(*figures) for figures in zip(prompts, validation, held_out, strict=True))
    return OptimizationReport(summary, initial, found)


def _soft_prompt(candidate: Candidate) -> dict[str, Any]:
    return {} if candidate.soft_prompt is None else {"soft_prompt": candidate.soft_prompt}
