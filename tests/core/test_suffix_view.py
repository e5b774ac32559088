"""A view reads as the slice of its list, and grows with it."""

from __future__ import annotations

import pytest

from hasten.core.suffix_view import SuffixView


@pytest.mark.parametrize("begin", [0, 1, 4, 7])
def test_a_view_reads_as_a_slice(begin: int) -> None:
    tokens = list(range(10, 17))
    view = SuffixView(tokens, begin)
    for _ in range(2):
        expected = tokens[begin:]
        assert len(view) == len(expected) and list(view) == expected
        assert [view[i] for i in range(-len(view), len(view))] == expected * 2
        bounds = [None, *range(-9, 10)]
        for start in bounds:
            for stop in bounds:
                for step in (None, 2, -1):
                    assert view[start:stop:step] == expected[start:stop:step]
        for index in (len(view), -len(view) - 1):
            with pytest.raises(IndexError):
                view[index]
        tokens += [50, 51]
