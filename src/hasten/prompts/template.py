"""``PromptTemplate``: a prompt with variables, written in Jinja and rendered within limits.

It is rendered as chat templates are (``hasten.text.template_process``): in a sandbox, in a process that can be killed. An undefined
value is an error here, because an empty place in a prompt would go unseen.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from hasten.core.check_fields import Fault, check_fields
from hasten.core.errors import InvalidOption, InvalidRequest, nearest, show
from hasten.core.field_type import Length, OneOf
from hasten.core.unicode_text import is_unicode
from hasten.text.template_process import TemplateKind, TemplateProcess

LANGUAGES = ("en", "zh")
MAX_SOURCE = 1 << 18  # characters of a template
MAX_EXAMPLES = 100_000  # of one list
Value = str | Sequence[Mapping[str, str]]  # a text, or a list of examples
_NAME = re.compile(r"\w[\w.-]*")
_Name = Annotated[str, Length(1, 80)]
_Source = Annotated[str, Length(0, MAX_SOURCE)]


@dataclass(frozen=True)
class PromptTemplate:
    """A named prompt with variables. Raises ``InvalidOption`` that names every wrong field."""

    name: _Name  # letters, digits, "_", "-" and "."
    text: Annotated[str, Length(1, MAX_SOURCE)]  # in Jinja
    description: Annotated[str, Length(0, 1000)] = ""
    language: Annotated[str, OneOf(LANGUAGES)] = "en"
    # of variables that may be left out
    defaults: Annotated[Mapping[_Name, _Source], Length(0, 64)] = field(default_factory=dict, hash=False)
    system: _Source | None = None  # plain text that stands before every rendered text

    def __post_init__(self) -> None:
        check_fields(self, "template field", InvalidOption, self._conflicts)

    def _conflicts(self) -> Iterator[Fault]:
        if not _NAME.fullmatch(self.name):
            yield Fault("name", "letters, digits, _, - and .")
        unread = sorted(self.defaults.keys() - self._names)
        if unread:
            read = ", ".join(sorted(self._names)) or "none"
            yield Fault("defaults", f"variables that the text reads: {read}", f"The text does not read {show(unread[0])}")

    @functools.cached_property
    def _names(self) -> frozenset[str]:
        return shared_process().variable_names(self.text, self._kind)

    @property
    def _kind(self) -> TemplateKind:
        return TemplateKind(
            name=f"the text of the prompt template {self.name!r}",
            inputs="these variables",
            syntax_error=InvalidOption,
            input_remedy="Correct the template or its variables",
            limit_remedy="Shorten the variables, or simplify the template",
            is_strict=True,
        )

    @property
    def variables(self) -> tuple[str, ...]:
        """The variables that the text reads and that have no default, sorted."""
        return tuple(sorted(self._names - self.defaults.keys()))

    def render(self, variables: Mapping[str, Value]) -> str:
        """Return the prompt: the text with these variables, after the system text and a blank line, if any.

        Raises ``InvalidRequest`` that names all missing, unused and wrong variables, or if the template fails or exceeds a limit.
        """
        text = self._rendered(variables)
        return text if not self.system else f"{self.system}\n\n{text}"

    def messages(self, variables: Mapping[str, Value]) -> list[dict[str, str]]:
        """Return the prompt as a conversation for ``LLM.chat``: the system text, if any, and a user's message."""
        before = [{"role": "system", "content": self.system}] if self.system else []
        return [*before, {"role": "user", "content": self._rendered(variables)}]

    def _rendered(self, variables: Mapping[str, Value]) -> str:
        given = {**self.defaults, **self._read(variables)}
        length = len(self.text) + sum(map(_num_characters, given.values()))
        text = shared_process().render(self.text, given, length, kind=self._kind)
        if not is_unicode(text):
            raise InvalidRequest(f"the prompt template {self.name!r} writes half of a surrogate pair", remedy="Correct it")
        return text

    def _read(self, variables: Mapping[str, Value]) -> dict[str, Any]:
        """Return a plain copy of the variables. Raises ``InvalidRequest`` that names all faults."""
        if not isinstance(variables, Mapping) or not all(isinstance(name, str) for name in variables):
            raise InvalidRequest("the variables are not a mapping from names", got=show(variables))
        missing = sorted(set(self.variables) - variables.keys())
        unused = sorted(variables.keys() - self._names)
        if missing or unused:
            faults = [f"missing {name}" for name in missing] + [f"not read {show(name)}" for name in unused]
            remedy = nearest(unused[0], missing or self._names or {"no variable"}) if unused else f"Set {missing[0]}"
            raise InvalidRequest(
                f"the variables do not fit the prompt template {self.name!r}", got=", ".join(faults), remedy=remedy
            )
        read = {name: _read_value(value) for name, value in variables.items()}
        wrong = [f"{name}={show(variables[name])}" for name, value in read.items() if value is None]
        if wrong:
            raise InvalidRequest(
                f"{len(wrong)} variables of the prompt template {self.name!r} are not texts",
                got=", ".join(wrong[:8]),
                allowed=f"Unicode texts, or lists of up to {MAX_EXAMPLES:,} examples, each a mapping from names to texts",
            )
        return read


@functools.cache
def shared_process() -> TemplateProcess:
    """Return the process that renders all prompt templates of this program.

    It starts at the first template.
    """
    return TemplateProcess()


def _read_value(value: object) -> str | list[dict[str, str]] | None:
    """Return a plain copy of a variable's value, or None if it is neither a text nor a list of examples."""
    if isinstance(value, str):
        return str.__str__(value) if is_unicode(value) else None
    if not isinstance(value, (list, tuple)) or len(value) > MAX_EXAMPLES:
        return None
    examples = [dict(item) if isinstance(item, Mapping) else None for item in value]
    if any(item is None or not all(map(is_unicode, (*item, *item.values()))) for item in examples):
        return None
    return [item for item in examples if item is not None]


def _num_characters(value: str | list[dict[str, str]]) -> int:
    if isinstance(value, str):
        return len(value)
    return sum(len(name) + len(text) for example in value for name, text in example.items())
