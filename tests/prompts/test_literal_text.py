"""``literal_text``: every text is written as it is, whatever Jinja means by it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.prompts.literal_text import literal_text
from hasten.prompts.template import PromptTemplate

PIECES = ["{", "}", "{{", "}}", "{%", "%}", "{#", "#}", "-", "{%- raw %}", "{% endraw %}"]
PIECES += ["\n", "\r", "\r\n", '"', "'", "\\", "\\n", " ", "x", "中"]


def written(text: str) -> str:
    return PromptTemplate("literal", literal_text(text) + "{{ input }}|").render({"input": "{{ y }}"})


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_a_template_writes_the_text(text: str) -> None:
    assert written(text) == text + "{{ y }}|"


@pytest.mark.parametrize("text", ["{{ x }}", "{% if %}", "{# no comment #}", "a\r\nb", "{{{", '{{ "{" }}'])
def test_text_that_is_not_made_literal_is_changed(text: str) -> None:
    """Negative control."""
    assert written(text) == text + "{{ y }}|"
    try:
        found = PromptTemplate("plain", text + "|").render({"x": "1"} if "x" in text else {})
    except Exception:
        return
    assert found != text + "|"
