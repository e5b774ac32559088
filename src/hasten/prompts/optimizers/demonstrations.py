"""``demonstrations``: train items with their answers, put before the input as text.

As BootstrapFewShotWithRandomSearch of DSPy (Khattab et al., 2023, arXiv 2310.03714; Opsahl-Ong et al., 2024, arXiv 2406.11695):
sets of items are drawn at random, and the best set by the validation items wins. Half of the sets show outputs of the model that
the metric calls right (bootstrapped); the others show the references. Every second set has labels in equal numbers. The
initial prompt takes part, and wins where no set is better by the tournament.

Items that are similar to an input cannot be selected, because the result is one text for all inputs.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from hasten.core.check_fields import check_fields
from hasten.core.errors import InvalidOption, PromptTooLong
from hasten.core.field_type import Range
from hasten.entrypoints.task_options import TaskOptions
from hasten.prompts.evaluate import prompt_token_ids
from hasten.prompts.evaluation import ItemResult
from hasten.prompts.examples import ExamplePool
from hasten.prompts.leading_text import with_leading_text
from hasten.prompts.library import TemplateLibrary
from hasten.prompts.load_variant import TemplateVariant
from hasten.prompts.optimizer import Candidate, Workbench
from hasten.prompts.select_examples import Method, select_examples
from hasten.prompts.task import PromptItem
from hasten.prompts.template import PromptTemplate
from hasten.prompts.tournament import bernstein_width, run_tournament

VARIABLE = "demonstrations"  # of the template, with the items shown as its default
RIGHT = 1.0  # the score of an output that is shown as it is; only metrics of scores 0 and 1 tell right from wrong
_MAX_ASKED = 4  # train items that are answered to find right outputs, for each item that is shown
_MAX_DRAWN = 4  # sets that are drawn for each one that is compared; equal ones and long ones do not count
_VARIABLES_ALONE = re.compile(r"(\s*(\w+:)?\s*\{\{\s*\w+\s*\}\}\s*)+")
_SEPARATOR = "\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemonstrationOptions:
    """Raises ``InvalidOption`` that names every value out of range."""

    shots: Annotated[int, Range(1, 1024)] = 4  # items that a prompt shows
    num_candidates: Annotated[int, Range(1, 10_000)] = 16  # sets that are compared

    def __post_init__(self) -> None:
        check_fields(self, "option of the method demonstrations", InvalidOption)


OPTIONS = DemonstrationOptions


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A train item with the answer that is shown."""

    item: PromptItem
    output: str


def optimize(bench: Workbench, initial: TemplateVariant, options: DemonstrationOptions) -> Candidate:
    """Return the best set by the validation items, as a template with the demonstrations in its text."""
    if len(bench.train) < options.shots:
        got = f"{len(bench.train)} train items and shots={options.shots}"
        raise InvalidOption("there are too few train items to show", got=got, remedy="Lower shots, or add items")
    search = _Search(bench, DemonstrationLayout.of(initial.template), options)
    variants = [initial, *search.variants()]
    names = [initial.name, *(variant.template.name for variant in variants[1:])]
    bench.on_log(f"{len(variants) - 1} sets of {options.shots} demonstrations, {len(bench.validation)} validation items")
    num_done, total = 0, len(variants) * len(bench.validation)

    def run_round(index: int, items: Sequence[PromptItem]) -> Sequence[ItemResult]:
        nonlocal num_done
        results = bench.evaluate(variants[index], items).results
        num_done += len(items)
        bench.on_progress(num_done, total)
        return results

    width = bernstein_width(bench.metric)
    standings = run_tournament(names, bench.validation, run_round, width=width, seed=bench.seed).standings
    bench.on_progress(total, total)
    return Candidate(variants[names.index(standings[0].variant)])


@dataclass(frozen=True, slots=True)
class DemonstrationLayout:
    """How an item is shown before the input: as the input itself, with its answer."""

    template: PromptTemplate

    @classmethod
    def of(cls, initial: PromptTemplate) -> DemonstrationLayout:
        """Return the layout of ``initial``.

        A template of variables alone gets the labels of ``few_shot``.
        """
        if not _VARIABLES_ALONE.fullmatch(initial.text):
            return cls(initial)
        is_chinese = initial.language == "zh"
        labels, colon = TemplateLibrary().find("few_shot_zh" if is_chinese else "few_shot").defaults, "：" if is_chinese else ": "
        head = f"{labels['input_label']}{colon}" if len(initial.variables) == 1 else ""
        text = f"{head}{initial.text.strip()}\n{labels['output_label']}{colon.strip()}"
        return cls(dataclasses.replace(initial, text=text))

    def variant(self, number: int, shown: Sequence[Demonstration]) -> TemplateVariant:
        """Return the prompt with these demonstrations, as a template without an example variable."""
        alone = TemplateVariant(self.template.name, dataclasses.replace(self.template, system=None))
        texts = [self._answered(alone.render(one.item.variables), one.output) for one in shown]
        template = dataclasses.replace(
            self.template,
            name=f"demonstrations-{number}",
            description=f"Shows {len(shown)} inputs with their outputs, then the input to answer.",
        )
        leading = with_leading_text(template, VARIABLE, _SEPARATOR.join(texts), _SEPARATOR, shown[0].item.variables)
        return TemplateVariant(leading.name, leading)

    @staticmethod
    def _answered(prompt: str, output: str) -> str:
        return prompt + TaskOptions(delimiter="" if prompt.endswith("：") else None).continuation(prompt, output)


@dataclass(frozen=True)
class _Search:
    """The sets of demonstrations that are compared."""

    bench: Workbench
    layout: DemonstrationLayout
    options: DemonstrationOptions

    def variants(self) -> list[TemplateVariant]:
        """Return the prompts to compare, no two equal. Raises ``PromptTooLong`` if none fits the context."""
        labelled = [Demonstration(item, item.references[0]) for item in self.bench.train]
        teacher = self._drawn(labelled, 0)
        right = self._right_outputs(teacher, labelled)
        found: dict[str, TemplateVariant] = {}  # by digest
        for number in range(_MAX_DRAWN * self.options.num_candidates):
            is_bootstrapped = number % 4 >= 2 and right
            shown = self._filled(right, labelled, number) if is_bootstrapped else self._drawn(labelled, number)
            variant = self.layout.variant(number + 1, shown)
            if self._fits(variant):
                found.setdefault(variant.digest, variant)
            if len(found) == self.options.num_candidates:
                break
        if not found:
            got, remedy = f"shots={self.options.shots}", "Lower shots, or raise max_model_len"
            raise PromptTooLong("no set of demonstrations fits the context with an input", got=got, remedy=remedy)
        return list(found.values())

    def _right_outputs(self, teacher: Sequence[Demonstration], labelled: Sequence[Demonstration]) -> list[Demonstration]:
        """Return the model's own outputs that are right, after the demonstrations of ``teacher``."""
        metric, variant = self.bench.metric, self.layout.variant(0, teacher)
        if not (metric.needs_output and metric.is_binary and self._fits(variant)):
            return []
        taught = {one.item.line for one in teacher}  # their answers stand in the prompt
        others = [one.item for one in labelled if one.item.line not in taught][: _MAX_ASKED * self.options.shots]
        if not others:
            return []
        found = self.bench.evaluate(variant, others)
        pairs = zip(found.items, found.results, strict=True)
        return [Demonstration(item, result.output.strip()) for item, result in pairs if result.output and result.score >= RIGHT]

    def _filled(self, right: Sequence[Demonstration], labelled: Sequence[Demonstration], number: int) -> list[Demonstration]:
        """Return a set of right outputs; references fill it up if these are too few."""
        if len(right) >= self.options.shots:
            return self._drawn(right, number)
        lines = {one.item.line for one in right}
        rest = [one for one in labelled if one.item.line not in lines]
        generator = self._generator(number)
        return generator.sample([*right, *generator.sample(rest, self.options.shots - len(right))], self.options.shots)

    def _drawn(self, pool: Sequence[Demonstration], number: int) -> list[Demonstration]:
        """Return a set of the pool, at random.

        It is balanced by label if the number is odd and the labels suffice.
        """
        counts = Counter(one.output for one in pool)
        is_balanced = number % 2 == 1 and min(counts.values()) * len(counts) >= self.options.shots + len(counts)
        examples = tuple({"input": str(index), "output": one.output} for index, one in enumerate(pool))
        seed = self._generator(number).randrange(2**32)
        method: Method = "balanced" if is_balanced else "random"
        (chosen,) = select_examples(ExamplePool(examples), [{"input": ""}], self.options.shots, method, seed=seed)
        return [pool[int(example["input"])] for example in chosen]

    def _generator(self, number: int) -> random.Random:
        return random.Random(f"demonstrations {self.bench.seed} {number}")

    def _fits(self, variant: TemplateVariant) -> bool:
        """Whether the longest input fits the context after the demonstrations."""
        bench = self.bench
        num_more = bench.options.max_tokens if bench.metric.needs_output else 1
        num_tokens = self._num_tokens(variant, self.longest) + num_more + bench.num_reserved
        return num_tokens <= int(bench.llm.describe()["max_model_len"])

    @functools.cached_property
    def longest(self) -> PromptItem:
        """The train or validation item whose prompt has the most tokens."""
        alone = TemplateVariant(self.layout.template.name, self.layout.template)
        return max((*self.bench.train, *self.bench.validation), key=lambda item: self._num_tokens(alone, item))

    def _num_tokens(self, variant: TemplateVariant, item: PromptItem) -> int:
        return len(prompt_token_ids(self.bench.llm, variant.render(item.variables), chat=self.bench.options.chat))
