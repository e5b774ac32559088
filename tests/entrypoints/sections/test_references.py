"""Headings that refer to other sections: which, why, and never in a circle."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.entrypoints.sections.references import find_references

# headings -> the sections each waits for, counted from 0
CASES: list[tuple[list[str], list[tuple[int, ...]]]] = [
    (["Set goals", "Plan the day", "Rest well"], [(), (), ()]),
    (["Causes", "Effects", "Conclusion"], [(), (), (0, 1)]),
    (["Causes", "Effects", "Final thoughts", "Key takeaways"], [(), (), (0, 1), (0, 1, 2)]),
    (["Executive summary", "Causes", "Effects"], [(1, 2), (), ()]),
    (["Costs", "Budget based on step 1", "Risks of steps 1 and 2"], [(), (0,), (0, 1)]),
    (["a", "b", "c", "Review of parts 1 to 3"], [(), (), (), (0, 1, 2)]),
    (["a", "b", "c", "Review of parts 1, 3"], [(), (), (), (0, 2)]),
    (["Measure", "Fix as described above", "Verify the previous step"], [(), (0,), (1,)]),
    (["Rent", "Buy", "Compare the two"], [(), (), (0, 1)]),
    (["Climate", "Rent", "Buy", "Differences between both"], [(), (), (), (1, 2)]),
    (["Electric cars", "Petrol cars", "Comparison"], [(), (), (0, 1)]),
    (["Step 1: mix", "Step 2: bake", "Step 3: cool"], [(), (), ()]),
    (["Tools", "Step 1: mix", "Step 2: bake", "Common errors in step 1"], [(), (), (), (1,)]),
    (["Use of step 2", "Use of step 1"], [(1,), ()]),  # a circle: the later reference is dropped
    (["See section 9", "b"], [(), ()]),
    (["明确目标", "制定计划", "总结"], [(), (), (0, 1)]),
    (["租房", "买房", "两者比较"], [(), (), (0, 1)]),
    (["成本", "根据第一步制定预算", "根据上述内容评估风险"], [(), (0,), (0, 1)]),
    (["第一步：准备", "第二步：搅拌", "对第1步和第2步的检查"], [(), (), (0, 1)]),
    (["优点", "缺点", "综上所述"], [(), (), (0, 1)]),
    (["Above the clouds"], [()]),
    (["准备", "60岁以上的人", "入职第一个月"], [(), (), ()]),
    (["准备", "以上内容的风险"], [(), (0,)]),
    ([f"Summary {i}" for i in range(64)], [tuple(range(1, 64)) if i == 0 else tuple(range(1, i)) for i in range(64)]),
]


@pytest.mark.parametrize(("headings", "expected"), CASES, ids=map(str, range(len(CASES))))
def test_references_are_found(headings: list[str], expected: list[tuple[int, ...]]) -> None:
    found = find_references(headings)
    assert [reference.waits_for for reference in found] == expected
    for reference in found:
        assert (reference.reason is None) == (not reference.waits_for)
        if reference.reason is not None:
            assert all(str(j + 1) in reference.reason for j in reference.waits_for)


WORDS = [
    "summary",
    "step 1",
    "step 3",
    "parts 2 to 4",
    "as above",
    "compare the two",
    "previous step",
    "第二步",
    "总结",
    "tea",
    "两者比较",
]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join), min_size=1, max_size=8))
def test_every_section_can_run(headings: list[str]) -> None:
    """Brute force: sections whose references are done are done, until all are."""
    waits_for = [reference.waits_for for reference in find_references(headings)]
    done: set[int] = set()
    for _ in headings:
        done |= {i for i, others in enumerate(waits_for) if set(others) <= done}
    assert done == set(range(len(headings)))
    assert all(i not in others and list(others) == sorted(set(others)) for i, others in enumerate(waits_for))
