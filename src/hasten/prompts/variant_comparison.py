"""``VariantComparison``: variants with one model, task and metric, in full or as a tournament."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hasten.core.errors import HastenError, InvalidOption, printable
from hasten.entrypoints.llm import LLM
from hasten.entrypoints.task_options import TaskOptions
from hasten.prompts.base import Variant
from hasten.prompts.evaluate import default_params, evaluate, prompt_seconds
from hasten.prompts.evaluation import Evaluation, ItemResult
from hasten.prompts.metric import Metric
from hasten.prompts.run_file import RunFile
from hasten.prompts.task import PromptItem
from hasten.prompts.tournament import Tournament, bernstein_width, run_tournament


def check_variants(variants: Sequence[Variant], items: Sequence[PromptItem]) -> Sequence[Variant]:
    """Return the variants if their names differ and each renders the first item.

    Raises ``HastenError``: a model need not be loaded to find a wrong template.
    """
    names = [variant.name for variant in variants]
    repeated = sorted({printable(name) for name in names if names.count(name) > 1})
    if repeated:
        raise InvalidOption("variants have the same name", got=", ".join(repeated), remedy="Give each variant once")
    for variant in variants:
        try:
            variant.render(items[0].variables)
        except HastenError as error:
            what = f"line {items[0].line} of the task: {error.what}"
            raise type(error)(what, got=error.got, allowed=error.allowed, remedy=error.remedy) from error
    return variants


@dataclass(slots=True)
class VariantComparison:
    llm: LLM
    variants: Sequence[Variant]
    items: Sequence[PromptItem]
    metric: Metric
    options: TaskOptions
    run_file: RunFile
    num_kept: int = 0  # results that were found in the file of the run

    def evaluate_all(self) -> list[Evaluation]:
        """Return the evaluation of each variant on all items."""
        return [self._evaluate(variant, self.items) for variant in self.variants]

    def run_tournament(self, seed: int) -> Tournament:
        """Return the standings after a tournament. ``seed``: which items come first."""

        def run_round(index: int, items: Sequence[PromptItem]) -> Sequence[ItemResult]:
            return self._evaluate(self.variants[index], items).results

        names = [variant.name for variant in self.variants]
        return run_tournament(names, self.items, run_round, width=bernstein_width(self.metric), seed=seed)

    def prompt_seconds(self, name: str) -> float:
        """Return the seconds that a prompt of median length takes, with nothing cached."""
        variant = next(variant for variant in self.variants if variant.name == name)
        return prompt_seconds(self.llm, [variant.render(item.variables) for item in self.items], chat=self.options.chat)

    def _evaluate(self, variant: Variant, items: Sequence[PromptItem]) -> Evaluation:
        params = default_params(self.options.max_tokens, self.options.stop_strings)
        num_before = len(self.run_file)
        found = evaluate(
            self.llm,
            variant,
            items,
            self.metric,
            params,
            chat=self.options.chat,
            run_file=self.run_file,
            visible=True,
        )
        self.num_kept += len(items) - (len(self.run_file) - num_before)
        return found
