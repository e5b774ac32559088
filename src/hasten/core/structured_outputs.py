"""``StructuredOutputs``: the form that an output must have. Plain data; field names are those of vLLM."""

from __future__ import annotations

import json as encoder
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from hasten.core.check_fields import Fault, check_fields
from hasten.core.errors import InvalidRequest
from hasten.core.field_type import Length
from hasten.core.nesting import is_nested_deeper

MAX_SOURCE = 64 << 10  # characters of a schema, an expression or a grammar
MAX_DEPTH = 32  # of nested objects and arrays in a schema
MAX_CHOICES = 4096
_FORMS = ("json", "json_object", "regex", "choice", "grammar")
_Source = Annotated[str, Length(1, MAX_SOURCE)]
if TYPE_CHECKING:
    _Schema = Any  # what a caller may give; the field holds a text
else:
    _Schema = _Source


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class StructuredOutputs:
    """One of the first five fields says what the output must be; the others have their defaults.

    ``json`` may be given as a schema in JSON, a mapping, a Pydantic model, a dataclass or any type that Pydantic describes.
    Raises ``InvalidRequest`` that names every field with an invalid value.
    """

    json: _Schema | None = None  # JSON that this JSON schema allows
    json_object: bool = False  # any JSON object
    regex: _Source | None = None  # a text that this regular expression matches as a whole (Rust's syntax, no look-around)
    choice: Annotated[tuple[_Source, ...], Length(0, MAX_CHOICES)] = ()  # one of these texts
    grammar: _Source | None = None  # a text of this grammar, in Lark or GBNF
    # No white space between the parts of JSON. Otherwise a space, or a line break and up to 40 blanks, may stand between two.
    disable_any_whitespace: bool = False

    def __post_init__(self) -> None:
        if self.json is not None and not isinstance(self.json, str):
            object.__setattr__(self, "json", _schema_text(self.json))
        check_fields(self, "structured_outputs setting", InvalidRequest, self._conflicts)

    @property
    def form(self) -> str:
        """The name of the field that is set."""
        return next(name for name in _FORMS if getattr(self, name))

    def _conflicts(self) -> Iterator[Fault]:
        given = [name for name in _FORMS if getattr(self, name)]
        if len(given) != 1:
            others = ", ".join(_FORMS)
            for name in given or ["json"]:
                yield Fault(name, f"exactly one of {others} is given", "Give one of them")
        if self.disable_any_whitespace and given not in (["json"], ["json_object"]):
            yield Fault("disable_any_whitespace", "False without json or json_object")
        if sum(map(len, self.choice)) > MAX_SOURCE:
            yield Fault("choice", f"up to {MAX_SOURCE} characters in all")
        if self.json is not None and (fault := _schema_fault(self.json)):
            yield Fault("json", fault)


def _schema_text(schema: Any) -> str:
    """Return the JSON of a schema, or of a type's schema. Raises ``InvalidRequest``."""
    try:
        if not isinstance(schema, Mapping):
            from pydantic import TypeAdapter

            schema = TypeAdapter(schema).json_schema()
        return encoder.dumps(schema, ensure_ascii=False, allow_nan=False)
    except Exception as error:  # Pydantic raises errors of many classes, and a mapping may hold anything
        raise InvalidRequest(
            "json describes no form of JSON",
            got=f"{type(schema).__name__} ({type(error).__name__})",
            allowed="a JSON schema as text or mapping, a Pydantic model, a dataclass or another type that Pydantic describes",
        ) from error


def _schema_fault(text: str) -> str | None:
    """Return what a schema must be, if this text is not that."""
    try:
        schema = encoder.loads(text)
    except (ValueError, RecursionError):
        return "a JSON schema"
    if not isinstance(schema, dict | bool):
        return "a JSON schema, which is an object, or true"
    return f"up to {MAX_DEPTH} levels of nesting" if is_nested_deeper(schema, MAX_DEPTH) else None
