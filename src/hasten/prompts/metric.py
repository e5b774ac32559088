"""``Metric``: how good an output is, or how likely the reference is; and finding a metric by its name.

More is better, for every metric.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from hasten.core.errors import InvalidOption, nearest, show
from hasten.core.soft_prompt import SoftPrompt
from hasten.entrypoints.input_processor import Prompt
from hasten.prompts import metrics
from hasten.prompts.task import PromptItem

if TYPE_CHECKING:
    from hasten.entrypoints.llm import LLM


@dataclass(frozen=True, slots=True)
class Attempt:
    """One item asked with one variant."""

    item: PromptItem
    prompt: Prompt  # as the model gets it
    output: str | None  # the generated text; None for a metric that needs none
    soft_prompt: SoftPrompt | None = None  # stands before the prompt


@dataclass(frozen=True, slots=True)
class ItemScore:
    score: float
    num_tokens: int = 0  # computed for the metric, beside prompt and output


class Metric(Protocol):
    @property
    def name(self) -> str:
        """The name with its argument, as the user wrote it."""

    @property
    def identity(self) -> str:
        """A text that changes whenever scores could change; results are kept under it."""

    @property
    def needs_output(self) -> bool:
        """Whether a text is generated for each item. If not, the prompt is enough for the metric."""

    @property
    def low(self) -> float:
        """The worst score; -inf without a bound."""

    @property
    def high(self) -> float:
        """The best score; inf without a bound."""

    @property
    def is_binary(self) -> bool:
        """Whether every score is 0 or 1."""

    def score(self, attempt: Attempt, llm: LLM) -> ItemScore:
        """Return the score of one item, a finite number. Raises ``HastenError``."""

    def close(self) -> None:
        """End processes of the metric. Idempotent."""


class MetricFile(Protocol):
    """A module of ``prompts/metrics``."""

    ARGUMENT: str | None

    def make_metric(self, argument: str | None) -> Metric:
        """Return the metric. Raises ``HastenError`` for a wrong argument."""


def metric_names() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(metrics.__path__)))


def open_metric(name: str) -> Metric:
    """Return a metric by ``NAME`` or ``NAME:ARGUMENT``. Close it at the end.

    Raises ``InvalidOption`` if there is none of this name, or if its argument is wrong.
    """
    word, colon, argument = name.partition(":")
    names = metric_names()
    if word not in names:
        raise InvalidOption("unknown metric", got=show(name), allowed=", ".join(names), remedy=nearest(word, names))
    file = cast(MetricFile, importlib.import_module(f"{metrics.__name__}.{word}"))
    if colon and (file.ARGUMENT is None or not argument):
        allowed = word if file.ARGUMENT is None else f"{word}:{file.ARGUMENT}"
        raise InvalidOption(f"the metric {word} is written without this", got=show(name), allowed=allowed)
    return file.make_metric(argument or None)


def text_digest(*texts: str) -> str:
    """Return the SHA-256 of texts in hexadecimal."""
    hasher = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        hasher.update(len(data).to_bytes(8, "big") + data)
    return hasher.hexdigest()
