"""``Optimizer``: a way to find a better prompt; what it may use, and what it returns."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from hasten.core.errors import InvalidOption, nearest, show
from hasten.core.soft_prompt import SoftPrompt
from hasten.entrypoints.task_options import TaskOptions
from hasten.prompts import optimizers
from hasten.prompts.evaluate import default_params, evaluate
from hasten.prompts.evaluation import Evaluation
from hasten.prompts.load_variant import TemplateVariant
from hasten.prompts.metric import Metric
from hasten.prompts.run_file import RunFile
from hasten.prompts.task import PromptItem

if TYPE_CHECKING:
    from hasten.entrypoints.llm import LLM


@dataclass(frozen=True, slots=True)
class Candidate:
    """A prompt that an optimiser found."""

    variant: TemplateVariant
    soft_prompt: SoftPrompt | None = None  # stands before the rendered text


@dataclass(slots=True)
class Workbench:
    """What an optimiser may use. The held-out items are not in it.

    A killed run goes on because an optimiser is deterministic: with the same seed it asks the same questions again, and finds their
    answers in ``run_file``, or in files of its own in ``folder``.
    """

    llm: LLM
    train: tuple[PromptItem, ...]
    validation: tuple[PromptItem, ...]
    metric: Metric
    options: TaskOptions
    run_file: RunFile
    folder: Path
    seed: int
    on_log: Callable[[str], None]
    on_progress: Callable[[int, int], None] = lambda num_done, total: None  # of anything that is counted, for the time left
    num_reserved: int = 0  # positions of the context that stay free, for held-out inputs that are longer than all others
    num_tokens: int = 0  # computed so far for the optimisation; answers that were kept count too

    def evaluate(self, variant: TemplateVariant, items: Sequence[PromptItem], soft_prompt: SoftPrompt | None = None) -> Evaluation:
        """Return the scores of a variant, and count its tokens."""
        params = default_params(self.options.max_tokens, self.options.stop_strings)
        found = evaluate(
            self.llm,
            variant,
            items,
            self.metric,
            params,
            chat=self.options.chat,
            soft_prompt=soft_prompt,
            run_file=self.run_file,
            visible=True,
            num_reserved=self.num_reserved,
        )
        self.num_tokens += found.num_tokens
        return found


class Optimizer(Protocol):
    """A module of ``prompts/optimizers``."""

    OPTIONS: type[Any]  # a frozen dataclass that checks its fields; each one has a default

    def optimize(self, bench: Workbench, initial: TemplateVariant, options: Any) -> Candidate:
        """Return the best prompt by the validation items; ``initial`` if none is better.

        Raises ``HastenError``. A ``KeyboardInterrupt`` leaves files from which the same call goes on.
        """


def optimizer_names() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(optimizers.__path__)))


def find_optimizer(name: str) -> Optimizer:
    """Return a method by its name. Raises ``InvalidOption``."""
    names = optimizer_names()
    if name not in names:
        raise InvalidOption("unknown method", got=show(name), allowed=", ".join(names), remedy=nearest(name, names))
    return cast(Optimizer, importlib.import_module(f"{optimizers.__name__}.{name}"))
