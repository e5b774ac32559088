"""The order of the text, whatever order the sections grow in."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.core.output import RequestMetrics
from hasten.entrypoints.sections.ordered_text import OrderedText
from hasten.entrypoints.sections.output import Section


def section(index: int) -> Section:
    metrics = RequestMetrics(arrival=0.0)
    return Section(index=index, heading=f"h{index}", text="", token_ids=(), prompt_token_ids=(), seed=None, metrics=metrics)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=30), st.permutations(range(4)))
def test_text_comes_in_order_and_as_soon_as_it_may(growth: list[int], ends: list[int]) -> None:
    text = OrderedText(("h0", "h1", "h2", "h3"))
    texts, complete, shown = ["", "", "", ""], [False] * 4, ""
    steps = [(index, f"<{number}>", False) for number, index in enumerate(growth)] + [(index, ".", True) for index in ends]
    for index, part, ends_now in steps:
        texts[index] += part
        complete[index] |= ends_now
        released = text.push(index, part, section(index) if ends_now else None)
        shown += "".join(delta.text for delta in released)
        expected = ""
        for i in range(4):
            expected += (f"## h{i}\n" if texts[i] else "") + texts[i]
            if not complete[i]:
                break
            expected += "\n\n" if i < 3 else ""
        assert shown == text.text == expected
        assert [delta.index for delta in released] == sorted(delta.index for delta in released)
    assert text.is_complete and [each.index for each in text.sections] == [0, 1, 2, 3]


def test_a_plain_answer_has_no_heading() -> None:
    text = OrderedText(("",))
    assert [delta.text for delta in text.push(0, "a", None)] == ["a"]
    assert text.push(0, "", None) == []
    (last,) = text.push(0, "b", section(0))
    assert (last.text, text.text, text.is_complete) == ("b", "ab", True)
