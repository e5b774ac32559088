"""``soft_prompt``: embeddings before the initial prompt, trained by gradient.

Prompt tuning: Lester et al., 2021, arXiv 2104.08691. The model is loaded a second time, in float32, for the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from hasten.checkpoints.json_values import is_integer, read_json
from hasten.core.check_fields import check_fields
from hasten.core.errors import InvalidOption, show
from hasten.core.field_type import Length, Range
from hasten.entrypoints.deferred_signals import DeferredSignals
from hasten.prompts.evaluate import check_context, item_named, prompt_token_ids
from hasten.prompts.load_variant import TemplateVariant
from hasten.prompts.metric import text_digest
from hasten.prompts.optimizer import Candidate, Workbench
from hasten.prompts.task import PromptItem
from hasten.training.callback import TrainingCallback, evaluation_line
from hasten.training.examples import Example, Examples, output_tokens
from hasten.training.options import TrainOptions
from hasten.training.recipes import MAX_VIRTUAL_TOKENS, SoftPromptRecipe
from hasten.training.score import Score
from hasten.training.train import train_on_examples
from hasten.training.training_run import REPORT

SAVE_EVERY = 5.0  # seconds of training that a killed run loses at most


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftPromptOptions:
    """Raises ``InvalidOption`` that names every value out of range."""

    virtual_tokens: Annotated[int, Range(1, MAX_VIRTUAL_TOKENS)] = 20  # embeddings before every prompt
    steps: Annotated[int, Range(1, 10**9)] = 300  # optimizer steps; fewer if the validation loss does not fall any more
    learning_rate: Annotated[float, Range(0, 1e6, above=True)] = SoftPromptRecipe.learning_rate  # its peak
    # a text whose token embeddings are the initial ones, repeated or cut; None: those of random tokens
    init_text: Annotated[str, Length(1, 2**16)] | None = None
    batch: Annotated[int, Range(1, 2**16)] = 8  # items per step

    def __post_init__(self) -> None:
        check_fields(self, "soft prompt option", InvalidOption)


OPTIONS = SoftPromptOptions


def optimize(bench: Workbench, initial: TemplateVariant, options: SoftPromptOptions) -> Candidate:
    """Return the initial variant with a soft prompt, or alone if that is as good on the validation items.

    The training learns the first reference of each train item after its prompt. The loss on the validation items chooses the step.
    """
    before = bench.evaluate(initial, bench.validation)
    parts = [_examples(bench, initial, items, options.virtual_tokens) for items in (bench.train, bench.validation)]
    soft_prompt = bench.llm.load_soft_prompt(_train(bench, Examples.join(*parts), options))
    after = bench.evaluate(initial, bench.validation, soft_prompt)
    bench.on_log(f"validation: {before.mean:.4g} before, {after.mean:.4g} with the soft prompt")
    return Candidate(initial, soft_prompt if after.mean > before.mean else None)


def _examples(bench: Workbench, initial: TemplateVariant, items: Sequence[PromptItem], virtual_tokens: int) -> list[Example]:
    """Return the prompts of items with their outputs, which have an end token if the metric generates."""
    llm, options, is_generated = bench.llm, bench.options, bench.metric.needs_output
    examples = []
    for item in items:
        with item_named(item, initial.name):
            text = initial.render(item.variables)
            ids = prompt_token_ids(llm, text, chat=options.chat)
            output = options.continuation(text, item.references[0])
            output_ids = output_tokens(llm.tokenizer, output, has_end=is_generated)
            num_more = max(len(output_ids), options.max_tokens if is_generated else 0) + bench.num_reserved
            check_context(llm, len(ids), num_more, virtual_tokens)
        examples.append(Example([*ids, *output_ids], len(ids)))
    return examples


def _train(bench: Workbench, examples: Examples, options: SoftPromptOptions) -> Path:
    """Return the folder of the trained soft prompt, and count the tokens of the training."""
    recipe = SoftPromptRecipe(virtual_tokens=options.virtual_tokens, init_text=options.init_text)
    training = TrainOptions(
        steps=options.steps, batch=options.batch, lr=options.learning_rate, seed=bench.seed, save_every=SAVE_EVERY
    )
    name = text_digest(bench.llm.digest().weights, examples.digest(), repr(options), repr(bench.seed))
    folder = bench.folder / f"soft-prompt-{name[:16]}"
    while not (folder / REPORT).is_file():  # the last file of a training
        # A signal waits until the step is saved. The training goes on if its handler raises nothing.
        with DeferredSignals() as signals:
            model, should_stop = bench.llm.describe()["folder"], lambda: signals.is_pending
            train_on_examples(model, examples, folder, recipe, training, callback=_Log(bench), should_stop=should_stop)
    bench.num_tokens += _num_tokens(folder, options.virtual_tokens)
    return folder


def _num_tokens(folder: Path, virtual_tokens: int) -> int:
    """Return the positions that the training computed. Raises ``InvalidOption`` for a damaged report."""
    report = read_json(folder / REPORT)
    num_sequences, num_tokens = report.get("num_sequences"), report.get("num_tokens")
    if not is_integer(num_sequences, 0) or not is_integer(num_tokens, 0):
        got = show([num_sequences, num_tokens])
        raise InvalidOption(f"{folder / REPORT} is damaged", got=got, remedy="Remove its folder, and the training runs again")
    return num_sequences * virtual_tokens + num_tokens


@dataclass(frozen=True, slots=True)
class _Log(TrainingCallback):
    bench: Workbench

    def on_log(self, message: str) -> None:
        self.bench.on_log(message)

    def on_step_end(self, step: int, total_steps: int, loss: float) -> None:
        self.bench.on_progress(step, total_steps)

    def on_evaluate(self, step: int, total_steps: int, loss: float, score: Score) -> None:
        self.bench.on_log(evaluation_line(step, total_steps, loss, score))
