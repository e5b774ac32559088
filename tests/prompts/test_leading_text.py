"""``with_leading_text``: every text stands before any template as it is, whatever Jinja means by it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.prompts.leading_text import with_leading_text
from hasten.prompts.template import PromptTemplate

PIECES = ["{", "}", "{{", "}}", "{%", "%}", "{#", "#}", "-", "{%- raw %}", "{% endraw %}"]
PIECES += ["\n", "\r", "\r\n", '"', "'", "\\", "\\n", " ", "x", "中"]
TEMPLATES = ("{{ input }}|", "\n  {%- if input %}{{ input }}|{% endif %}", "  {% if input %}\n{{ input }}|\n{% endif %}")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.sampled_from(TEMPLATES), st.sampled_from(["\n", "\n\n"]))
def test_the_text_and_the_separator_stand_first(text: str, source: str, separator: str) -> None:
    template, values = PromptTemplate("t", source), {"input": "{{ y }}"}
    found = with_leading_text(template, "text", text, separator)
    assert found.render(values) == text + separator + template.render(values)
    assert found.variables == template.variables and found.defaults == {"text": text}


def test_the_variable_is_new_to_template_and_items() -> None:
    template = PromptTemplate("t", "{{ text }}{% set text_ = 'own' %}{{ text_ }}", defaults={"text": "mine"}, system="Be brief.")
    found = with_leading_text(template, "text", "first", "\n", ["text__"])
    assert found.render({}) == "Be brief.\n\nfirst\nmineown" and set(found.defaults) == {"text", "text___"}


@pytest.mark.parametrize("text", ["{{ x }}", "{% if x %}y{% endif %}", "{# no comment #}"])
def test_text_that_is_part_of_the_template_is_changed(text: str) -> None:
    """Negative control."""
    found = PromptTemplate("plain", text + "|").render({"x": "1"} if "x" in text else {})
    assert found != text + "|"
