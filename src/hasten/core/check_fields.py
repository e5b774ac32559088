"""``check_fields``: every field of a settings class against its annotation, in one place."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, get_type_hints

from hasten.core.errors import HastenError, nearest, show
from hasten.core.field_type import FieldType, OneOf, field_type

MAX_EXPLAINED = 8  # faults that a message explains; further ones it only names
CORRECT_IT = "Correct the value, or omit it for the default"


class Fault(NamedTuple):
    name: str  # of the field
    allowed: str  # its allowed values, or those it may have beside the values of other fields
    remedy: str = CORRECT_IT


def check_fields(
    settings: Any, subject: str, error: type[HastenError], conflicts: Callable[[], Iterable[Fault]] = lambda: ()
) -> None:
    """Convert every field of a dataclass to its declared type (``hasten.core.field_type``).

    ``conflicts`` is called if every field is right on its own. Raises ``error`` that names every wrong field; ``subject`` is the
    word for one of them.
    """
    read_values, fields = _fields(settings.__class__)
    faults = []
    for (name, default, kind), value in zip(fields, read_values(settings), strict=True):
        if value is default:  # as most are
            continue
        try:
            converted = kind.read(value)
        except HastenError:  # of settings inside these
            raise
        except Exception:  # an object of the caller's own class may raise any
            faults.append(_fault(name, kind, value))
            continue
        if converted is not value:
            object.__setattr__(settings, name, converted)
    faults = faults or list(conflicts())
    if faults:
        hidden = {field.name for field in dataclasses.fields(settings) if not field.repr}  # they may hold a password
        shown = [(name, "..." if name in hidden else show(getattr(settings, name)), allowed) for name, allowed, _ in faults]
        texts = [f"{name}={value} (allowed: {allowed})" for name, value, allowed in shown[:MAX_EXPLAINED]]
        texts += [f"and {', '.join(fault.name for fault in faults[MAX_EXPLAINED:])}"] if len(faults) > MAX_EXPLAINED else []
        number = f"{len(faults)} {subject}s are" if len(faults) > 1 else f"1 {subject} is"
        raise error(f"{number} out of range: {'; '.join(texts)}", remedy=faults[0].remedy if len(faults) == 1 else CORRECT_IT)


@functools.cache
def _fields(cls: Any) -> tuple[Callable[[Any], tuple[Any, ...]], tuple[tuple[str, Any, FieldType], ...]]:
    """Return a function that reads all fields of an instance, and the name, default and type of each."""
    hints = get_type_hints(cls, include_extras=True)
    fields = tuple((field.name, field.default, field_type(hints[field.name])) for field in dataclasses.fields(cls))
    names = [name for name, _, _ in fields]
    if len(names) == 1:  # the getter of one name returns its value, not a tuple
        return lambda settings: (getattr(settings, names[0]),), fields
    return operator.attrgetter(*names), fields


def _fault(name: str, kind: FieldType, value: object) -> Fault:
    choice = next((member for member in getattr(kind, "members", (kind,)) if isinstance(member, OneOf)), None)
    if choice is None or not isinstance(value, str):
        return Fault(name, kind.allowed)
    renamed = f"; {value} was renamed to {choice.renamed[value]}" if value in choice.renamed else ""
    return Fault(name, kind.allowed + renamed, nearest(value[:80], choice.choices))
