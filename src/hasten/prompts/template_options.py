"""``TemplateOptions``: a prompt template, its variables and examples, as plain values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from hasten.core.check_fields import Fault, check_fields
from hasten.core.engine_options import Name, Seed
from hasten.core.errors import InvalidOption
from hasten.core.field_type import Length, OneOf, Range
from hasten.prompts.select_examples import METHODS
from hasten.prompts.template import MAX_EXAMPLES

NUM_EXAMPLES = 4  # unless the file has fewer


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateOptions:
    """Raises ``InvalidOption`` that names every value out of range."""

    template: Name | None = None  # name of the template
    templates: Annotated[tuple[Name, ...], Length(0, 64)] = ()  # folders or files of templates, before the built-in ones
    var: Annotated[tuple[Annotated[str, Length(1, 2**20)], ...], Length(0, 64)] = ()  # NAME=VALUE
    var_file: Annotated[tuple[Name, ...], Length(0, 64)] = ()  # NAME=FILE
    examples: Name | None = None  # JSONL file
    num_examples: Annotated[int, Range(1, MAX_EXAMPLES)] | None = None  # None: four, or as many as fit the budget
    example_method: Annotated[str, OneOf(METHODS)] = "random"
    example_seed: Seed = 0
    max_prompt_tokens: Annotated[int, Range(1, 2**24)] | None = None  # whole examples are left out beyond it

    def __post_init__(self) -> None:
        check_fields(self, "template option", InvalidOption, self._conflicts)

    def _conflicts(self) -> Iterator[Fault]:
        if self.template is None:
            for name in ("templates", "var", "var_file", "examples"):
                if getattr(self, name):
                    yield Fault(name, "only with template")
        if self.examples is None:
            unset = {"num_examples": None, "example_method": "random", "example_seed": 0, "max_prompt_tokens": None}
            for name, default in unset.items():
                if getattr(self, name) != default:
                    yield Fault(name, "only with examples")
