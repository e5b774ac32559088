"""``add_limits``: the limits of ``SamplingParams`` in the JSON schema of a body."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from hasten.core.field_type import MAX_FLOAT, OneOf, Range
from hasten.core.sampling_params import SamplingParams

_NONE = {"top_k": -1, "seed": -1, "thinking_token_budget": -1}  # values of requests that mean none, below the setting's own


def add_limits(schema: dict[str, Any]) -> None:
    """Add to each field that is a setting the range of its numbers, or its choices."""
    hints = get_type_hints(SamplingParams, include_extras=True)
    for name in schema["properties"].keys() & {field.name for field in dataclasses.fields(SamplingParams)}:
        for limit in _limits(hints[name]):
            for kind in _kinds(schema["properties"][name]):
                kind.update(_written(limit, kind.get("type"), name))


def _limits(annotation: Any) -> Iterator[Range | OneOf]:
    """Yield the limits of a number or a text, and of none inside a collection."""
    if get_origin(annotation) is Annotated:
        base, *notes = get_args(annotation)
        yield from (note for note in notes if base in (int, float, str) and isinstance(note, Range | OneOf))
    elif type(None) in get_args(annotation):
        for member in get_args(annotation):
            yield from _limits(member)


def _kinds(field: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the schemas of the values that are not null."""
    return [each for each in field.get("anyOf", [field]) if each.get("type") != "null"]


def _written(limit: Range | OneOf, kind: str | None, name: str) -> dict[str, Any]:
    if isinstance(limit, OneOf):
        return {"enum": list(limit.choices)} if kind == "string" else {}
    if kind not in ("integer", "number"):
        return {}
    low = _NONE.get(name, limit.low)
    found: dict[str, Any] = {"exclusiveMinimum" if limit.above else "minimum": low}
    return found | ({"maximum": limit.high} if limit.high < MAX_FLOAT else {})
