"""``FieldType``: what a field of a settings class may hold, read from the field's annotation.

It knows ``bool``, ``int``, ``float``, ``str``, ``tuple[T, ...]``, ``Mapping[K, V]``, literals, settings classes, unions with None.
``Annotated`` adds the limits: a ``Range`` to every number, a ``Length`` to every collection, ``OneOf`` to a text that is a choice.
Other texts have at most ``MAX_TEXT`` characters without a ``Length``. A number or a collection without a limit is a ``TypeError``,
so that no field is left unchecked.

A value of another class that means the same is converted: integers and floats of NumPy, subclasses of ``str``, lists. A ``bool`` is
no number, NaN is in no range, and half of a surrogate pair is no text.
"""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin

MAX_FLOAT = sys.float_info.max
MAX_TEXT = 4096  # characters of a text without ``Length``: a path, a hub id, a revision


class FieldType(Protocol):
    @property
    def allowed(self) -> str:
        """The allowed values, as an error message names them."""

    def read(self, value: Any) -> Any:
        """Return the value in the field's own type. Raises any exception for a value that is not allowed."""


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers from ``low`` to ``high``; ``above``: without ``low``."""

    low: float
    high: float = MAX_FLOAT
    above: bool = False

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high and not (self.above and number == self.low)

    def __str__(self) -> str:
        if self.above:
            return f"above {self.low}" + (f", up to {self.high}" if self.high < MAX_FLOAT else "")
        return f"{self.low} to {self.high}" if self.high < MAX_FLOAT else f"from {self.low}"


@dataclass(frozen=True, slots=True)
class Length:
    """The number of characters of a text, or of items of a collection."""

    low: int
    high: int


@dataclass(frozen=True)
class OneOf:
    """A text that is one of ``choices``. ``renamed``: former spelling -> choice."""

    choices: tuple[str, ...]
    renamed: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def allowed(self) -> str:
        return ", ".join(self.choices)

    def read(self, value: Any) -> str:
        return self.choices[self.choices.index(value)]


@dataclass(frozen=True, slots=True)
class _Integer:
    range: Range

    @property
    def allowed(self) -> str:
        return str(self.range)

    def read(self, value: Any) -> int:
        if type(value) is not int and (isinstance(value, bool) or not isinstance(value, Integral)):
            raise TypeError
        number = int(value)
        if number not in self.range:
            raise ValueError
        return number


@dataclass(frozen=True, slots=True)
class _Float:
    range: Range

    @property
    def allowed(self) -> str:
        return str(self.range)

    def read(self, value: Any) -> float:
        if type(value) is not float and (isinstance(value, bool) or not isinstance(value, Real)):
            raise TypeError
        number = float(value)
        if number not in self.range:
            raise ValueError
        return number


@dataclass(frozen=True, slots=True)
class _Constant:
    """One of the values of a ``Literal``, or either ``bool``. 1 is not True."""

    values: tuple[object, ...]

    @property
    def allowed(self) -> str:
        return " or ".join(map(repr, self.values))

    def read(self, value: Any) -> object:
        return next(constant for constant in self.values if type(constant) is type(value) and constant == value)


@dataclass(frozen=True, slots=True)
class _Text:
    length: Length

    @property
    def allowed(self) -> str:
        least = f"{self.length.low} to" if self.length.low else "up to"
        return f"Unicode text of {least} {self.length.high} characters"

    def read(self, value: Any) -> str:
        if not isinstance(value, str) or not self.length.low <= len(value) <= self.length.high:
            raise ValueError
        value.encode()  # raises an error for half of a surrogate pair
        return str.__str__(value)  # a ``str`` also of an enumeration's member


@dataclass(frozen=True, slots=True)
class _Tuple:
    """A tuple or a list. One text stands for a tuple of it.

    None stands for an empty tuple, because clients send null for it.
    """

    item: FieldType
    length: Length

    @property
    def allowed(self) -> str:
        return f"{_count(self.length)} items, each {self.item.allowed}"

    def read(self, value: Any) -> tuple[Any, ...]:
        if value is None or isinstance(value, str):
            value = () if value is None else (value,)
        if not isinstance(value, (tuple, list)) or not self.length.low <= len(value) <= self.length.high:
            raise ValueError
        if isinstance(self.item, _Integer) and set(map(type, value)) == {int}:  # many token ids are checked at once
            if min(value) not in self.item.range or max(value) not in self.item.range:
                raise ValueError
            return tuple(value)
        return tuple(map(self.item.read, value))


@dataclass(frozen=True, slots=True)
class _Mapping:
    key: FieldType
    value: FieldType
    length: Length

    @property
    def allowed(self) -> str:
        return f"{_count(self.length)} items, each from a key {self.key.allowed} to a value {self.value.allowed}"

    def read(self, value: Any) -> dict[Any, Any]:
        if value is None:
            return {}
        if not isinstance(value, Mapping) or not self.length.low <= len(value) <= self.length.high:
            raise ValueError
        return {self._read_key(key): self.value.read(item) for key, item in value.items()}

    def _read_key(self, key: Any) -> Any:
        """Return the key. JSON has only texts as keys, so one of decimal digits stands for its number."""
        is_number = isinstance(self.key, _Integer) and isinstance(key, str) and key.isdecimal() and len(key) < 20
        return self.key.read(int(key) if is_number else key)


@dataclass(frozen=True, slots=True)
class _Settings:
    """An object of a settings class, or named values for one.

    The class raises its own error for wrong values.
    """

    settings_class: Any

    @property
    def allowed(self) -> str:
        names = ", ".join(field.name for field in dataclasses.fields(self.settings_class))
        return f"{self.settings_class.__name__}, or named values for it: {names}"

    def read(self, value: Any) -> Any:
        if isinstance(value, self.settings_class):
            return value
        if not isinstance(value, Mapping) or not value.keys() <= {field.name for field in dataclasses.fields(self.settings_class)}:
            raise ValueError
        return self.settings_class(**value)


@dataclass(frozen=True, slots=True)
class _Union:
    members: tuple[FieldType, ...]
    optional: bool  # whether None is allowed, too

    @property
    def allowed(self) -> str:
        return " or ".join([*(["None"] if self.optional else []), *(member.allowed for member in self.members)])

    def read(self, value: Any) -> Any:
        if value is None and self.optional:
            return None
        for member in self.members[:-1]:
            try:
                return member.read(value)
            except Exception:  # not of this type, perhaps of the next one
                continue
        return self.members[-1].read(value)


def field_type(annotation: Any, *limits: Any) -> FieldType:
    """Return the type that an annotation declares; ``limits`` are those of ``Annotated``.

    Raises ``TypeError`` for an annotation that declares no type, or a number or a collection without its limit.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return field_type(arguments[0], *arguments[1:])
    if annotation is bool:
        return _Constant((True, False))
    if origin is Literal:
        return _Constant(arguments)
    if origin in (Union, types.UnionType):
        members = tuple(field_type(member) for member in arguments if member is not type(None))
        return _Union(members, optional=len(members) < len(arguments))
    if annotation is str:
        limit = limits[0] if limits else Length(0, MAX_TEXT)
        return limit if isinstance(limit, OneOf) else _Text(limit)
    if dataclasses.is_dataclass(annotation):
        return _Settings(annotation)
    if not limits:
        raise TypeError(f"{annotation} has no Range and no Length")
    if annotation in (int, float):
        return _Integer(limits[0]) if annotation is int else _Float(limits[0])
    if origin is tuple and arguments[1:] == (...,):
        return _Tuple(field_type(arguments[0]), limits[0])
    if origin is Mapping:
        return _Mapping(field_type(arguments[0]), field_type(arguments[1]), limits[0])
    raise TypeError(f"{annotation} is no type of a setting")


def _count(length: Length) -> str:
    return f"exactly {length.low}" if length.low == length.high else f"{length.low} to {length.high}"
