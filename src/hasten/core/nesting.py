"""``is_nested_deeper``: whether objects and arrays are nested too deeply, found without recursion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def is_nested_deeper(value: object, max_depth: int) -> bool:
    """Return whether a value has more than ``max_depth`` levels of mappings, lists and tuples.

    One that holds itself has any number of levels.
    """
    level = [value]
    for _ in range(max_depth + 1):
        nested = {id(item): item for item in level if isinstance(item, (Mapping, list, tuple))}
        if not nested:
            return False
        level = [child for item in nested.values() for child in _items(item)]
    return True


def _items(value: Mapping[str, object] | list[object] | tuple[object, ...]) -> Iterable[object]:
    return value.values() if isinstance(value, Mapping) else value
