"""``TaskOptions``: how the items of a task are given to a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from hasten.core.check_fields import check_fields
from hasten.core.errors import InvalidOption
from hasten.core.field_type import Length, Range


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """Raises ``InvalidOption`` that names every value out of range."""

    max_tokens: Annotated[int, Range(1, 2**20)] = 64  # of a generated answer
    # texts that end a generated answer; None: a line break; empty ones do not count
    stop: Annotated[tuple[Annotated[str, Length(0, 256)], ...], Length(0, 16)] | None = None
    ignore_case: bool = False  # of generated answers
    # text between prompt and choice where neither has white space; None: a space, or nothing with ``chat``
    delimiter: Annotated[str, Length(0, 64)] | None = None
    chat: bool = False  # each prompt is a user's message, rendered by the chat template

    def __post_init__(self) -> None:
        check_fields(self, "task option", InvalidOption)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return ("\n",) if self.stop is None else tuple(filter(None, self.stop))

    def continuation(self, prompt: str, choice: str) -> str:
        """Return the text that is scored after the prompt."""
        has_space = not self.chat and (prompt[-1:].isspace() or choice[:1].isspace())
        default = "" if self.chat else " "
        return choice if has_space else (default if self.delimiter is None else self.delimiter) + choice
