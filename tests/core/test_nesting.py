"""The depth of JSON, also where recursion would end, or never would."""

import pytest

from hasten.core.nesting import is_nested_deeper


@pytest.mark.parametrize(
    ("value", "depth"),
    [("text", 0), (None, 0), ({}, 1), ([], 1), ({"a": 1}, 1), ({"a": [], "b": {"c": [1]}}, 3), (((1,), [{}]), 3)],
)
def test_levels_are_counted(value: object, depth: int) -> None:
    assert not is_nested_deeper(value, depth)
    assert depth == 0 or is_nested_deeper(value, depth - 1)


def test_depth_without_recursion() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert is_nested_deeper(deep, 100_000) and not is_nested_deeper(deep, 100_001)


def test_values_that_hold_themselves_or_each_other_often() -> None:
    cyclic: dict[str, object] = {}
    cyclic["self"] = cyclic["again"] = cyclic
    assert is_nested_deeper(cyclic, 1_000)
    shared: list[object] = []
    for _ in range(100):
        shared = [shared, shared]
    assert is_nested_deeper(shared, 100) and not is_nested_deeper(shared, 101)
